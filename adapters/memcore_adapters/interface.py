"""The attention functions that memcore registers with transformers.

Each stands in front of the function that the model used before, and calls it: untouched while memory has nothing to
add, with more keys, values and a mask of its own once it has. So soft-capping and the like stay the family's business.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from memcore.attention import additive
from memcore.cache import MemoryCache
from memcore.errors import UnsupportedModelError
from memcore.gate import GATE, gate_bias, gated
from memcore.memory_layer import MemoryLayer
from memcore_adapters.checkpointing import RECORD_ARGUMENT, LayerRecord
from memcore_adapters.delegate import Delegate
from memcore_adapters.query_blocks import can_be_cut, in_blocks
from memcore_adapters.query_groups import can_be_grouped, in_groups

CACHE_ARGUMENT = "memcore_cache"
"""Keyword by which a forward hands its cache to the attention functions, past every layer in between."""


def _last_weights(
    delegate: Delegate,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Return how the last token's attention is spread, ``[B, Hq, keys]``, as the family computes it."""
    if delegate.eager is None:
        raise UnsupportedModelError(f"{type(module).__name__} has no eager attention function to trace with")
    if mask is not None:
        mask = additive(mask, query.dtype)[:, :, -1:]
    with torch.no_grad():
        _, weights = delegate.eager(module, query[:, :, -1:], key, value, mask, *args, **{**kwargs, "dropout": 0.0})
    assert weights is not None
    return weights[:, :, -1]


def _at_work(cache: MemoryCache | None) -> bool:
    """Return whether memory has anything to add; before that all is to be bit for bit as without it."""
    return cache is not None and cache.window is not None and cache.window.active


def register(delegate: Delegate) -> str:
    """Register the memory attention in front of ``delegate`` and return its name for ``set_attn_implementation``."""

    def memory_attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        cache: MemoryCache | None = kwargs.pop(CACHE_ARGUMENT, None)
        record: LayerRecord | None = kwargs.pop(RECORD_ARGUMENT, None)
        layer = None if cache is None else cache.layers[module.layer_idx]
        gate: Tensor | None = getattr(module, GATE, None)
        retrieved: Tensor | None = None  # [B, P]: which of the first P keys memory brought, for the gate
        joined = False
        if record is not None and record.complete:
            joined = record.has_memory
            key, value, attention_mask, retrieved = record.join(key, value, attention_mask)
        elif isinstance(layer, MemoryLayer):
            assert cache is not None
            assert cache.window is not None
            if cache.window.active:
                new = key.shape[2]
                key, value, attention_mask = layer.attend(
                    query, key, value, scaling=kwargs["scaling"], row_names=cache.row_names
                )
                joined = True
                if gate is not None:
                    retrieved = layer.memory_columns()
                if record is not None:
                    record.joined(key, value, attention_mask, retrieved, new)
            else:
                layer.watch(query, key, value)
        if gate is not None and retrieved is not None:
            attention_mask = gated(attention_mask, gate_bias(gate.to(query), retrieved, key.shape[2]))
        if joined and isinstance(layer, MemoryLayer) and cache is not None and cache.memory.tracing:
            weights = _last_weights(delegate, module, query, key, value, attention_mask, *args, **kwargs)
            cache.memory.tracing.note(cache, layer, weights)
        if joined:
            attention_mask = delegate.mask_from(attention_mask, query, key)
        if delegate.is_sdpa and _at_work(cache):
            if not args and can_be_grouped(query, key, attention_mask, kwargs):
                return in_groups(query, key, value, attention_mask, scaling=kwargs.get("scaling"))
            if not joined and can_be_cut(query, key, attention_mask):
                return in_blocks(delegate.function, module, query, key, value, attention_mask, *args, **kwargs)
        return delegate.function(module, query, key, value, attention_mask, *args, **kwargs)

    AttentionInterface.register(delegate.name, memory_attention)
    AttentionMaskInterface.register(delegate.name, delegate.mask)
    return delegate.name
