"""The attention that a model used before it was wrapped, which the memory attention stands in front of."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from memcore.attention import additive
from memcore.errors import UnsupportedModelError

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]


@attrs.frozen(kw_only=True)
class Delegate:
    """The attention that a model used before it was wrapped.

    Attributes:
        name: of the memory attention in front of it, for the registry.
        function: the function; for eager, the family's own.
        mask: makes the masks it wants from what transformers knows.
        mask_from: makes the mask it wants from what is visible (``[B or 1, 1, T, keys]`` bool, or what to add to the
            logits, ``[B, Hq or 1, T, keys]``; None if every token sees every key), the query ``[B, Hq, T, D]`` and the
            key ``[B, H, keys, D]``.
        eager: the family's own function, which also returns the attention weights; None if it has none.
        is_sdpa: whether it is transformers' own for ``sdpa``, whose work may be divided in other ways, see
            :mod:`memcore_adapters.query_blocks` and :mod:`memcore_adapters.query_groups`.
    """

    name: str
    function: AttentionFunction
    mask: Callable[..., Any]
    mask_from: Callable[[Tensor | None, Tensor, Tensor], Any]
    eager: AttentionFunction | None
    is_sdpa: bool


def delegate_for(decoder: Any, implementation: str) -> Delegate:
    """Return what the model's current attention implementation stands for.

    Raises:
        UnsupportedModelError: memory cannot extend that implementation.
    """
    module = sys.modules[type(decoder).__module__]
    eager = getattr(module, "eager_attention_forward", None)
    if implementation not in _CONVERSIONS:
        raise UnsupportedModelError(
            f"attention implementation {implementation!r} cannot be extended with memory; load the model with "
            "attn_implementation='sdpa' or 'eager'"
        )
    function = eager if implementation == "eager" else ALL_ATTENTION_FUNCTIONS[implementation]
    if function is None:
        raise UnsupportedModelError(f"{module.__name__} has no eager attention function to extend")
    # transformers treats names that contain sdpa, flash or flex_attention specially.
    names = {"eager": f"memcore_eager_{decoder.config.model_type}", "sdpa": "memcore", "flex_attention": "memcore_flex"}
    return Delegate(
        name=names[implementation],
        function=function,
        mask=ALL_MASK_ATTENTION_FUNCTIONS[implementation],
        mask_from=_CONVERSIONS[implementation],
        eager=eager,
        is_sdpa=function is sdpa_attention_forward,
    )


def _to_add(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    return additive(mask, query.dtype)


def _as_it_is(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    return mask


def _blocks(mask: Tensor | None, query: Tensor, key: Tensor) -> BlockMask:
    new, keys = query.shape[2], key.shape[2]
    if mask is None:
        mask = query.new_ones(1, 1, new, keys, dtype=torch.bool)
    elif mask.dtype != torch.bool:
        raise UnsupportedModelError(
            "flex attention cannot add a number of each head's own to the logits, which a gate needs; load the model "
            "with attn_implementation='sdpa' or 'eager'"
        )
    # From which new token on a key is seen: code compiled for a CPU can compare two numbers, and not look pairs up.
    live = mask[:, 0, -1]  # the last token sees all but padding
    since = torch.where(live, torch.arange(keys, device=mask.device) - (keys - new), new).int()
    since = since.expand(query.shape[0], keys).contiguous()

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query >= since[row, key]

    return create_block_mask(sees, query.shape[0], None, new, keys, device=str(mask.device))


_CONVERSIONS: dict[str, Callable[[Tensor | None, Tensor, Tensor], Any]] = {
    "eager": _to_add,
    "sdpa": _as_it_is,
    "flex_attention": _blocks,
}
