"""What memcore itself offers, registered the way any plugin registers."""

from __future__ import annotations

import functools
import importlib

from memcore.hookspecs import Component, hookimpl


def _load(module: str, name: str) -> type:
    found: type = getattr(importlib.import_module(module), name)
    return found


def _component(name: str, summary: str, module: str, class_name: str) -> Component:
    return Component(name=name, summary=summary, load=functools.partial(_load, module, class_name))


@hookimpl
def memcore_backends() -> list[Component]:
    """Offer the reference backend."""
    return [_component("exact", "in memory, searched exhaustively by torch", "memcore.exact_backend", "ExactBackend")]


@hookimpl
def memcore_embedders() -> list[Component]:
    """Offer the embedders: of keys, which are training-free, and of text."""
    module = "memcore.embedders"
    return [
        _component("mean", "the mean of the chunk's keys", module, "MeanKey"),
        _component("subblock", "mean keys of short runs of tokens, several per chunk", module, "SubBlockMeans"),
        _component("minmax", "bounds of the keys in each dimension", module, "MinMaxBounds"),
        _component("exact", "every key of the chunk", module, "EveryKey"),
        _component("random", "chunks by chance, a control for evaluations", module, "RandomVectors"),
        _component(
            "sentence-transformers", "the chunk's text, by a sentence embedder", "memcore.text_embedder", "TextEmbedder"
        ),
    ]


@hookimpl
def memcore_eviction_policies() -> list[Component]:
    """Offer the eviction policies."""
    module = "memcore.eviction_policies"
    return [
        _component("memlong", "drops the oldest tenth and the least retrieved", module, "MemLongEviction"),
        _component("fifo", "drops the oldest", module, "FifoEviction"),
        _component("lru", "drops what was retrieved longest ago", module, "LruEviction"),
        _component("lfu", "drops what was retrieved least often", module, "LfuEviction"),
    ]
