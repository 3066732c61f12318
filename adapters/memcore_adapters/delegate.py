"""The attention that a model used before it was wrapped, which the memory attention stands in front of."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import attrs
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from memcore.errors import UnsupportedModelError

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]


@attrs.frozen(kw_only=True)
class Delegate:
    """The attention that a model used before it was wrapped.

    Attributes:
        name: its name in the registry.
        function: the function; for eager, the family's own.
        mask: makes the masks it wants.
        additive_mask: whether it adds masks to the logits instead of reading them as visible or not.
        eager: the family's own function, which also returns the attention weights; None if it has none.
    """

    name: str
    function: AttentionFunction
    mask: Callable[..., Any]
    additive_mask: bool
    eager: AttentionFunction | None


def delegate_for(decoder: Any, implementation: str) -> Delegate:
    """Return what the model's current attention implementation stands for.

    Raises:
        UnsupportedModelError: memory cannot extend that implementation.
    """
    module = sys.modules[type(decoder).__module__]
    eager = getattr(module, "eager_attention_forward", None)
    if implementation == "eager":
        if eager is None:
            raise UnsupportedModelError(f"{module.__name__} has no eager attention function to extend")
        return Delegate(
            name=f"eager_{decoder.config.model_type}",
            function=eager,
            mask=ALL_MASK_ATTENTION_FUNCTIONS["eager"],
            additive_mask=True,
            eager=eager,
        )
    if implementation == "sdpa":
        return Delegate(
            name="sdpa",
            function=ALL_ATTENTION_FUNCTIONS["sdpa"],
            mask=ALL_MASK_ATTENTION_FUNCTIONS["sdpa"],
            additive_mask=False,
            eager=eager,
        )
    raise UnsupportedModelError(
        f"attention implementation {implementation!r} cannot be extended with memory yet; "
        "load the model with attn_implementation='sdpa' or 'eager'"
    )
