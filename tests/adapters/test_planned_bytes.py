"""What ``memcore plan`` works out, against what models of all families really hold."""

from __future__ import annotations

import functools
from typing import Any

import attrs
import pytest
import torch
from tiny_models import FAMILIES, random_tokens, tiny_config, tiny_model

import memcore
import memcore.prefix
import memcore.retriever
from memcore import ChunkBatch, MemoryConfig, SearchResult
from memcore.exact_backend import ExactBackend
from memcore.memory_layer import MemoryLayer
from memcore.planning.costs import costs_of
from memcore.planning.model_shape import model_shape

BATCH = 2
TOKENS = 123
SMALL = MemoryConfig(window=32, chunk_size=8, sinks=4, top_k=2, query_tokens=6, question_tokens=5, retrieve_every=3)
EVERY_EMBEDDER = ("subblock", "mean", "minmax", "exact", "random")

every_family = pytest.mark.parametrize("family", list(FAMILIES))


@functools.cache
def read(family: str, config: MemoryConfig, dtype: torch.dtype = torch.float32, tokens: int = TOKENS) -> Any:
    """Return a wrapped model that has read a text, and its cache."""
    model = memcore.wrap(tiny_model(family).to(dtype), config)
    with torch.no_grad():
        return model, model(random_tokens(BATCH, tokens, seed=1), use_cache=True).past_key_values


def planned(family: str, config: MemoryConfig, dtype: str = "float32", tokens: int = TOKENS) -> Any:
    shape = model_shape(tiny_config(family), config, dtype=dtype)
    return costs_of(shape, shape.config, tokens=tokens, batch=BATCH)


def nbytes(*tensors: torch.Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@every_family
def test_weights_are_those_of_the_model(family: str) -> None:
    shape, (model, _) = model_shape(tiny_config(family), SMALL), read(family, SMALL)
    assert shape.parameters == sum(each.numel() for each in model.parameters())
    assert shape.weight_bytes == sum(each.nbytes for each in model.parameters())


@every_family
def test_the_bank_holds_the_bytes_that_were_planned(family: str) -> None:
    model, _ = read(family, SMALL)
    costs = planned(family, SMALL)
    assert model.memory.bank.backend.nbytes() == costs.bank.payload + costs.bank.vectors
    views = model.memory.bank._namespaces.views()
    assert sum(nbytes(v.ids, v.part, v.backend_ids, v.usage[:, : len(v)]) for v in views) == costs.bookkeeping
    assert {len(view) for view in views} == {costs.chunks}


@every_family
def test_the_cache_holds_the_bytes_that_were_planned(family: str) -> None:
    _, cache = read(family, SMALL)
    local = planned(family, SMALL).local
    held = sliding = joined = 0
    for layer in cache.layers:
        if not isinstance(layer, MemoryLayer):
            sliding += nbytes(layer.keys, layer.values)
            continue
        state = {name: tensor for name, tensor in layer.state().items() if not name.startswith("recalled")}
        held += nbytes(*state.values())
        for each in (layer.keys, layer.values):
            joined += each.untyped_storage().nbytes() - each.nbytes
    assert held == local.window + local.retrieved
    assert sliding == local.sliding
    assert joined == local.joined


@every_family
def test_full_attention_would_keep_the_bytes_that_were_planned(family: str) -> None:
    with torch.no_grad():
        cache = tiny_model(family)(random_tokens(BATCH, 20, seed=1), use_cache=True).past_key_values
    held = sum(nbytes(layer.keys, layer.values) for layer in cache.layers)
    assert held == planned(family, MemoryConfig(**{**SMALL.to_dict(), "window": 16, "sinks": 0}), tokens=20).full_cache


@pytest.mark.parametrize("tokens", [37, 44, 45, 200])
def test_as_many_chunks_leave_the_window_as_were_planned(tokens: int) -> None:
    model, _ = read("llama", SMALL, tokens=tokens)
    costs = planned("llama", SMALL, tokens=tokens)
    assert {len(view) for view in model.memory.bank._namespaces.views()} == {costs.chunks}
    assert model.memory.bank.backend.nbytes() == costs.bank.payload + costs.bank.vectors


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "deepseek_v3"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("compression", ["none", "int8"])
def test_so_it_is_in_half_precision_and_in_int8(family: str, dtype: str, compression: str) -> None:
    config = MemoryConfig(**{**SMALL.to_dict(), "backend_options": {"compression": compression}})
    model, cache = read(family, config, getattr(torch, dtype))
    costs = planned(family, config, dtype)
    assert model.memory.bank.backend.nbytes() == costs.bank.payload + costs.bank.vectors
    layers = [layer for layer in cache.layers if isinstance(layer, MemoryLayer)]
    assert all(layer.keys.dtype == getattr(torch, dtype) for layer in layers)


@pytest.mark.parametrize("embedder", EVERY_EMBEDDER)
def test_so_it_is_with_every_embedder(embedder: str) -> None:
    config = MemoryConfig(**{**SMALL.to_dict(), "embedder": embedder})
    model, _ = read("llama", config)
    costs = planned("llama", config)
    assert model.memory.bank.backend.nbytes() == costs.bank.payload + costs.bank.vectors


@pytest.mark.parametrize(
    "changes", [{"layers": (1,)}, {"memory_layer": 0}, {"memory_layer": 0, "layers": (1,)}, {"layers": ()}]
)
def test_so_it_is_where_only_some_layers_remember_or_read(changes: dict[str, Any]) -> None:
    config = MemoryConfig(**{**SMALL.to_dict(), **changes})
    model, cache = read("llama", config)
    costs = planned("llama", config)
    assert model.memory.bank.backend.nbytes() == costs.bank.payload + costs.bank.vectors
    held = sum(
        nbytes(*(tensor for name, tensor in layer.state().items() if not name.startswith("recalled")))
        for layer in cache.layers
    )
    assert held == costs.local.window + costs.local.retrieved


def test_a_capacity_bounds_what_was_planned() -> None:
    config = MemoryConfig(**{**SMALL.to_dict(), "capacity": 40, "eviction": "fifo"})
    model, _ = read("llama", config)
    costs = planned("llama", config)
    assert costs.chunks == 5
    assert model.memory.bank.backend.nbytes() <= costs.bank.payload + costs.bank.vectors


@pytest.mark.parametrize("rerank", [0, 1, 3, None])
def test_what_moves_for_a_choice_of_chunks_is_what_was_planned(
    monkeypatch: pytest.MonkeyPatch, rerank: int | None
) -> None:
    config = MemoryConfig(**{**SMALL.to_dict(), "rerank": rerank})
    model, cache = read("llama", config, tokens=117)  # so that nothing leaves the window for some steps
    moved = {"queries": 0, "read": 0, "to_model": 0}
    fetch, retrieve = ExactBackend.fetch, ExactBackend.retrieve

    def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        moved["to_model"] += tensor.nbytes
        return tensor

    def fetched(self: ExactBackend, namespace: str, ids: torch.Tensor) -> ChunkBatch:
        found = fetch(self, namespace, ids)
        moved["read"] += nbytes(*attrs.asdict(found, recurse=False).values())
        return found

    def retrieved(self: ExactBackend, namespace: str, queries: torch.Tensor, top_k: int) -> SearchResult:
        moved["queries"] += queries.nbytes
        return retrieve(self, namespace, queries, top_k)

    for module in (memcore.retriever, memcore.prefix):
        monkeypatch.setattr(module, "to_device", to_device)
    monkeypatch.setattr(ExactBackend, "fetch", fetched)
    monkeypatch.setattr(ExactBackend, "retrieve", retrieved)
    with torch.no_grad():
        for _ in range(2 * SMALL.retrieve_every):
            model(random_tokens(BATCH, 1, seed=2), past_key_values=cache)
    step = planned("llama", config, tokens=117).step
    assert moved == {"queries": 2 * step.queries, "read": 2 * step.read, "to_model": 2 * step.to_model}
    assert (step.queries == 0) == (rerank is None), "where all chunks are candidates nothing is searched"
