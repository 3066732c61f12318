"""One token's attention on a CPU, for all query heads of a key/value head at once.

torch's attention on a CPU takes every query head by itself, and a single row of queries is what its kernels are slowest
at, in bfloat16 by far: 4 heads of 256 numbers that share 4,100 keys take 7 ms one by one and 0.6 ms together. A token
sees the same keys with each of them, so they can be rows of one product.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def can_be_grouped(query: Tensor, key: Tensor, mask: Any, options: Mapping[str, Any]) -> bool:
    """Return whether :func:`in_groups` gives what transformers' function for ``sdpa`` does, and may be faster.

    Not where gradients go through it, for the reason that :func:`memcore_adapters.query_blocks.can_be_cut` has.

    Args:
        query: ``[B, Hq, T, D]``.
        key: ``[B, H, keys, D]``.
        mask: what the attention function is given.
        options: its keyword arguments.
    """
    return (
        query.shape[2] == 1
        and query.shape[1] > key.shape[1]
        and query.device.type == "cpu"
        and not query.requires_grad
        and (mask is None or (isinstance(mask, Tensor) and mask.ndim == 4))
        and not options.get("dropout")
        and options.get("softcap") is None
        and options.get("position_bias") is None
    )


def in_groups(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float | None
) -> tuple[Tensor, None]:
    """Attend with one token, and return the output ``[B, 1, Hq, Dv]``.

    Args:
        query: ``[B, Hq, 1, D]``.
        key: ``[B, H, keys, D]``.
        value: ``[B, H, keys, Dv]``.
        mask: ``[B or 1, Hq or 1, 1, keys]``, True where a key is seen, or what to add to the logits.
        scaling: what logits are multiplied with; None for ``1 / sqrt(D)``.
    """
    batch, heads, _, size = query.shape
    grouped = (batch, key.shape[1], heads // key.shape[1])
    if mask is not None and mask.shape[1] > 1:
        mask = mask.reshape(mask.shape[0], *grouped[1:], mask.shape[3])
    output = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(*grouped, size), key, value, attn_mask=mask, scale=scaling
    )
    return output.reshape(batch, 1, heads, value.shape[3]), None
