"""Sliding attention on a CPU, a few queries at a time, each block with the keys that some query of it sees.

torch's attention on a CPU computes every product and then drops those that a mask hides. With a segment of 512 tokens
and a sliding window of 512 that is half of them; in blocks of 256 queries it is a third.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

BLOCK: Final = 256
"""Queries at a time: fewer save more products and repeat more keys for grouped queries."""


def can_be_cut(query: Tensor, key: Tensor, mask: Any) -> bool:
    """Return whether cutting an attention into blocks gives the same and may be faster.

    Not where gradients go through it: gradient checkpointing computes a layer again, when memory may have come to work
    in the meantime, and must then save as many tensors as before.

    Args:
        query: ``[B, Hq, T, D]``.
        key: ``[B, H, keys, D]``.
        mask: what the attention function is given.
    """
    return (
        query.device.type == "cpu"
        and not query.requires_grad
        and query.shape[2] > BLOCK
        and isinstance(mask, Tensor)
        and mask.dtype == torch.bool
        and mask.shape[-2:] == (query.shape[2], key.shape[2])
    )


def in_blocks(
    function: Callable[..., tuple[Tensor, Tensor | None]],
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend block by block of queries, and return the output ``[B, T, Hq, Dv]``, as the function does for all at once.

    Args:
        function: transformers' for ``sdpa``, which returns no weights.
        module: the attention module.
        query: ``[B, Hq, T, D]``.
        key: ``[B, H, keys, D]``.
        value: ``[B, H, keys, Dv]``.
        mask: ``[B or 1, Hq or 1, T, keys]`` bool, True where a query sees a key.
        *args: for the function.
        **kwargs: for the function.
    """
    outputs = []
    for begin in range(0, query.shape[2], BLOCK):
        rows = slice(begin, begin + BLOCK)
        # As numbers of a byte, several times as fast as torch's any().
        seen = mask[:, :, rows].view(torch.uint8).flatten(0, 2).amax(dim=0).nonzero()
        keys = slice(int(seen[0]), int(seen[-1]) + 1) if len(seen) else slice(None)
        output, _ = function(
            module, query[:, :, rows], key[:, :, keys], value[:, :, keys], mask[:, :, rows, keys], *args, **kwargs
        )
        outputs.append(output)
    return torch.cat(outputs, dim=1), None
