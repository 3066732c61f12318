# %% [markdown]
# # Is a memory worth anything here?
#
# Before you rely on a memory, measure it on your model and your texts, beside what you would use without it: the
# window alone, and chunks by chance. Keys are hidden in a text at several depths and asked for at its end.

# %%
import os
import tempfile
from pathlib import Path
from typing import Any

import memcore
from memcore.demo.text import language_reference
from memcore.demo.weights import demo_model_path
from memcore.evaluation.passkey import Grid, evaluate, summary
from memcore.evaluation.record import Record
from memcore.model_source import load_model

MODEL = os.environ.get("MODEL", "")  # hub id or folder; the demo's Gemma 3 270M if empty
TOKENS = int(os.environ.get("TOKENS", "4000"))
SEEDS = int(os.environ.get("SEEDS", "2"))

# %%
model: Any
model, tokenizer = load_model(MODEL or str(demo_model_path()))
config = memcore.MemoryConfig(window=512, chunk_size=32, top_k=8, rerank=8)
grid = Grid(lengths=(TOKENS,), depths=(0.2, 0.7), seeds=SEEDS)
ways = ("window", "random", "memory")

# %% [markdown]
# Every result is kept in the record as soon as it is there: what was interrupted goes on, and what is there is not done
# again. The settings say what the results belong to.

# %%
record = Record(Path(tempfile.mkdtemp()) / "passkey.json", "passkey", {"config": config.to_dict(), "tokens": TOKENS})
ids = tokenizer(language_reference(), add_special_tokens=False, verbose=False)["input_ids"]
evaluate(model, tokenizer, ids, ways, config=config, grid=grid, record=record)

# %% [markdown]
# The share of keys found, by depth. `memory` should be near 1, and far from `random`, which has chunks just as many:
# what tells them apart is that they are the right ones.

# %%
found = summary(record.results, ways, grid, "single")
for way, by_depth in found.items():
    print(f"{way:<8}", "  ".join(f"depth {depth:g}: {share[TOKENS]:.0%}" for depth, share in by_depth.items()))

# %% [markdown]
# `memcore eval` does this and more from the command line, with tables and pictures: perplexity over the length of
# context, in-context learning, questions about a text ([Evaluate](../../docs/evaluation.md)).
