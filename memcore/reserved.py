"""Tensors that take memory only where they have been written to, so that room for more costs nothing."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Sequence
from math import prod
from typing import Final

import torch
from torch import Tensor

from memcore.errors import BackendError

_SMALL: Final = 1 << 22
"""Bytes from which huge pages are asked for, 4 MB. What is smaller would take more memory by them."""


def takes_memory_late(device: torch.device) -> bool:
    """Return whether memory that was reserved and never written to takes none."""
    return device.type == "cpu" and hasattr(mmap, "MAP_ANONYMOUS")


def reserve(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor of any content.

    On Linux it lies in huge pages, except for its first 4 MB: with small ones, more time goes into getting memory from
    the system than into writing to it.

    Raises:
        BackendError: there is not so much address space.
    """
    size = prod(shape) * dtype.itemsize
    if size <= _SMALL or not takes_memory_late(device):
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise BackendError(f"cannot reserve {size:,} bytes: {error}") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel built without them
            memory.madvise(mmap.MADV_HUGEPAGE, _SMALL)
    return torch.frombuffer(memory, dtype=torch.uint8).view(dtype).view(tuple(shape))
