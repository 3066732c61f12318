"""The attention functions that memcore registers with transformers.

Each stands in front of the function that the model used before, and calls it: untouched while memory has nothing to
add, with more keys, values and a mask of its own once it has. So soft-capping and the like stay the family's business.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import attrs
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from memcore.attention import additive
from memcore.cache import MemoryCache
from memcore.errors import UnsupportedModelError
from memcore.memory_layer import MemoryLayer

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]

CACHE_ARGUMENT = "memcore_cache"
"""Keyword by which a forward hands its cache to the attention functions, past every layer in between."""


@attrs.frozen(kw_only=True)
class Delegate:
    """The attention that a model used before it was wrapped.

    Attributes:
        name: its name in the registry.
        function: the function; for eager, the family's own.
        mask: makes the masks it wants.
        additive_mask: whether it adds masks to the logits instead of reading them as visible or not.
    """

    name: str
    function: AttentionFunction
    mask: Callable[..., Any]
    additive_mask: bool


def delegate_for(decoder: Any, implementation: str) -> Delegate:
    """Return what the model's current attention implementation stands for.

    Raises:
        UnsupportedModelError: memory cannot extend that implementation.
    """
    if implementation == "eager":
        module = sys.modules[type(decoder).__module__]
        function = getattr(module, "eager_attention_forward", None)
        if function is None:
            raise UnsupportedModelError(f"{module.__name__} has no eager attention function to extend")
        return Delegate(
            name=f"eager_{decoder.config.model_type}",
            function=function,
            mask=ALL_MASK_ATTENTION_FUNCTIONS["eager"],
            additive_mask=True,
        )
    if implementation == "sdpa":
        return Delegate(
            name="sdpa",
            function=ALL_ATTENTION_FUNCTIONS["sdpa"],
            mask=ALL_MASK_ATTENTION_FUNCTIONS["sdpa"],
            additive_mask=False,
        )
    raise UnsupportedModelError(
        f"attention implementation {implementation!r} cannot be extended with memory yet; "
        "load the model with attn_implementation='sdpa' or 'eager'"
    )


def register(delegate: Delegate) -> str:
    """Register the memory attention in front of ``delegate`` and return its name for ``set_attn_implementation``."""
    # transformers treats names that contain sdpa, flash or flex specially.
    name = "memcore" if delegate.name == "sdpa" else f"memcore_{delegate.name}"

    def memory_attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        cache: MemoryCache | None = kwargs.pop(CACHE_ARGUMENT, None)
        layer = None if cache is None else cache.layers[module.layer_idx]
        if isinstance(layer, MemoryLayer):
            assert cache is not None
            assert cache.window is not None
            if cache.window.active:
                key, value, visible = layer.attend(
                    query, key, value, scaling=kwargs["scaling"], row_names=cache.row_names
                )
                attention_mask = additive(visible, query.dtype) if delegate.additive_mask else visible
            else:
                layer.note(query)
        return delegate.function(module, query, key, value, attention_mask, *args, **kwargs)

    AttentionInterface.register(name, memory_attention)
    AttentionMaskInterface.register(name, delegate.mask)
    return name
