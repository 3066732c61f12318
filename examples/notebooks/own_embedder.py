# %% [markdown]
# # An embedder of your own
#
# An embedder decides by which vectors a chunk is found. memcore's own look at the model's keys. This one looks at the
# words: a chunk is found if it has rare words in common with the latest tokens, as a search engine would.

# %%
import os
from collections.abc import Sequence
from typing import Any

import torch

import memcore
from memcore.demo.text import choose_facts, first_tokens, hide, language_reference
from memcore.demo.weights import demo_model_path
from memcore.embedder import ChunkKeys, RecentQueries
from memcore.model_source import load_model
from memcore.plugins import registry

MODEL = os.environ.get("MODEL", "")  # hub id or folder; the demo's Gemma 3 270M if empty
TOKENS = int(os.environ.get("TOKENS", "6000"))

# %% [markdown]
# ## The embedder
#
# Two methods, whose vectors are compared by their inner product. Each token has a random direction; a chunk is the sum
# of those of its tokens. A word that is everywhere would say nothing: each counts by how seldom it was seen so far.


# %%
class SharedWords(memcore.ChunkEmbedder):
    """Chunks that share rare tokens with what was read last."""

    SIZE = 512

    def __init__(self, options: object) -> None:
        """Take no options, and have seen nothing."""
        self._directions = torch.empty(0, self.SIZE)
        self._seen = torch.empty(0)

    def embed_chunks(self, chunks: ChunkKeys) -> torch.Tensor:
        """Return ``[N, 1, 512]``."""
        self._grow(int(chunks.token_ids.max()) + 1)
        self._seen += torch.bincount(chunks.token_ids.flatten().cpu(), minlength=len(self._seen))
        return torch.stack([self._vector(row.cpu()) for row in chunks.token_ids])[:, None]

    def embed_queries(self, recent: RecentQueries) -> torch.Tensor:
        """Return ``[1, 512]``."""
        self._grow(int(recent.token_ids.max()) + 1)
        return self._vector(recent.token_ids.cpu())[None]

    def _vector(self, token_ids: torch.Tensor) -> torch.Tensor:
        words = token_ids.unique()
        rarity = 1 / (1 + self._seen[words])
        return torch.nn.functional.normalize(rarity @ self._directions[words], dim=0)

    def _grow(self, vocabulary: int) -> None:
        known = len(self._seen)
        if vocabulary > known:
            chance = torch.Generator().manual_seed(known)
            more = torch.randn(vocabulary - known, self.SIZE, generator=chance)
            self._directions = torch.cat([self._directions, more])
            self._seen = torch.cat([self._seen, torch.zeros(vocabulary - known)])


# %% [markdown]
# ## A name for it
#
# A plugin offers it. In a package of your own the plugin is a module, named by an entry point
# ([memcore-sqlite](../memcore-sqlite/README.md) is one); in a notebook it is any object.


# %%
class Plugin:
    """Offers the embedder."""

    @memcore.hookimpl
    def memcore_embedders(self) -> Sequence[memcore.Component]:
        """Offer ``shared-words``."""
        return [memcore.Component(name="shared-words", summary="rare words in common", load=lambda: SharedWords)]


registry().register(Plugin(), "shared-words")

# %% [markdown]
# ## Does it find what is asked for?
#
# Facts are hidden in a long text, and each is asked for. With `rerank=0` the embedder alone decides what comes back;
# by default memcore takes many candidates and has the model's own attention choose among them.

# %%
model: Any
model, tokenizer = load_model(MODEL or str(demo_model_path()))
facts = choose_facts(4, seed=0, until=0.7)
text = hide(facts, first_tokens(language_reference(), TOKENS, tokenizer))


def answered(embedder: str) -> int:
    """Return how many facts come back with this embedder, and print the answers."""
    config = memcore.MemoryConfig(embedder=embedder, window=512, chunk_size=32, top_k=8, rerank=0)
    memcore.wrap(model, config, tokenizer=tokenizer)
    try:
        session = memcore.Session(model, "text", tokenizer)
        session.ingest(text)
        answers = [session.ask(fact.prompt, max_new_tokens=6).text for fact in facts]
    finally:
        memcore.unwrap(model)
    for fact, answer in zip(facts, answers, strict=True):
        mark = "right" if fact.is_answered_by(answer) else "wrong"
        print(f"{embedder:<13} {mark}  {fact.prompt} … {answer.strip()!r}")
    return sum(fact.is_answered_by(answer) for fact, answer in zip(facts, answers, strict=True))


found = {embedder: answered(embedder) for embedder in ("shared-words", "subblock", "random")}
print(found)

# %% [markdown]
# `random` is the control: chunks by chance. An embedder that does no better has learnt nothing about the question.
# `make bench-embedders` compares embedders over more texts and depths.
