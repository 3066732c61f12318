"""A model with a memory, measured in a process of its own: ``peers.py`` starts it.

Gets one argument, JSON: ``model``, ``dtype``, ``way`` (``streaming``, ``memory``, ``memory:BACKEND`` or ``infllm``),
``config`` (fields of the memory's configuration) and ``job`` (a file with what ``peers_measure.measure`` takes).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import attrs
import infllm
import transformers
from peers_measure import Peer, measure
from torch import Tensor

import memcore
from memcore.evaluation.ways import memory_for
from memcore.model_source import load_model


def configured(way: str, fields: dict[str, Any], folder: str) -> memcore.MemoryConfig:
    """Return the memory's configuration for a way of reading."""
    config = memcore.MemoryConfig(**fields)
    if way == infllm.NAME:
        return infllm.configuration(config.window_length)
    memory = memory_for(way, config)
    assert memory is not None
    return attrs.evolve(memory, backend_options={"path": folder}) if memory.backend == "lmdb" else memory


def peer(model: Any) -> Peer:
    """Return the wrapped model."""

    def prefill(ids: Tensor) -> Any:
        with model.memory.reading(question=False):
            return model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values

    def forward(ids: Tensor, cache: Any, seen: int) -> Tensor:
        logits: Tensor = model(input_ids=ids, past_key_values=cache, use_cache=True).logits
        return logits

    def score(ids: Tensor, cache: Any, seen: int) -> Tensor:
        with model.memory.reading(question=False):  # nothing is asked: read as the context was
            return forward(ids, cache, seen)

    return Peer(model=model, prefill=prefill, forward=forward, scoring=score)


def main() -> None:
    """Measure and print the result."""
    what = json.loads(sys.argv[1])
    model: Any
    model, _ = load_model(what["model"], device="cpu", dtype=what["dtype"])
    memcore.wrap(model, configured(what["way"], what["config"], f"{what['folder']}/memory"))
    job = json.loads(Path(what["job"]).read_text(encoding="utf-8"))
    print(json.dumps({**measure(peer(model), job), "transformers": transformers.__version__}))


if __name__ == "__main__":
    main()
