# %% [markdown]
# # An eviction policy of your own
#
# A memory with a `capacity` forgets. Which chunks go is up to a policy, or to a plugin's hook. memcore's own policies
# know ages and uses; this one knows how stories and contracts are written: the beginning says who is who.

# %%
import os
from collections.abc import Sequence
from typing import Any

import torch

import memcore
from memcore.demo.text import choose_facts, first_tokens, hide, language_reference
from memcore.demo.weights import demo_model_path
from memcore.model_source import load_model
from memcore.plugins import registry

MODEL = os.environ.get("MODEL", "")  # hub id or folder; the demo's Gemma 3 270M if empty
TOKENS = int(os.environ.get("TOKENS", "6000"))

# %% [markdown]
# ## The policy
#
# It is called when a layer holds more than it may, and returns the ids to drop. `usage.ids` are in order of age.


# %%
class KeepBeginning(memcore.EvictionPolicy):
    """Keeps the oldest fifth of the memory, and of the rest the newest."""

    def select(self, usage: memcore.ChunkUsage, capacity: int) -> torch.Tensor:
        """Return ids ``[M]`` to drop; a fifth more than must go, so that this is not done for every chunk."""
        first = capacity // 5
        room = capacity - capacity // 5
        return usage.ids[first : len(usage) - (room - first)]


# %% [markdown]
# ## A hook
#
# A hook decides before the policy does, and for some memories only: here for sessions whose names say that they are
# notes, of which the newest count. It returns None to leave a memory to the policy.


# %%
class Plugin:
    """Offers the policy, and decides for sessions of notes."""

    @memcore.hookimpl
    def memcore_eviction_policies(self) -> Sequence[memcore.Component]:
        """Offer ``keep-beginning``."""
        return [memcore.Component(name="keep-beginning", summary="the beginning stays", load=lambda: KeepBeginning)]

    @memcore.hookimpl
    def memcore_evict(self, session: str | None, usage: memcore.ChunkUsage, capacity: int) -> torch.Tensor | None:
        """Drop the oldest chunks of notes."""
        return usage.ids[: len(usage) - capacity] if session == "notes" else None


registry().register(Plugin(), "keep-beginning")

# %% [markdown]
# ## What is remembered
#
# A fact stands at the beginning of a text that is four times as long as the memory may be.

# %%
model: Any
model, tokenizer = load_model(MODEL or str(demo_model_path()))
(fact,) = choose_facts(1, seed=0, until=0.1)
text = hide([fact], first_tokens(language_reference(), TOKENS, tokenizer))


def remembered(eviction: str, session_name: str) -> bool:
    """Return whether the fact is remembered, and print what is."""
    config = memcore.MemoryConfig(eviction=eviction, capacity=TOKENS // 4, window=256, chunk_size=32, top_k=8)
    memcore.wrap(model, config)
    try:
        session = memcore.Session(model, session_name, tokenizer)
        session.ingest(text)
        answer = session.ask(fact.prompt, max_new_tokens=6).text
        bank = model.memory.bank
        kept = {name: bank.count(name) for name in bank.namespaces()}
    finally:
        memcore.unwrap(model)
    right = fact.is_answered_by(answer)
    print(f"{eviction:<15} {session_name:<6} {'right' if right else 'wrong'}  {fact.prompt} … {answer.strip()!r}")
    print(f"  chunks kept: {kept}")
    return right


results = {
    "fifo": remembered("fifo", "story"),
    "keep-beginning": remembered("keep-beginning", "story"),
    "keep-beginning, overruled by the hook": remembered("keep-beginning", "notes"),
}
print(results)
