"""Memory for what is staged, kept from one commit to the next: fresh pages cost more than what is written to them."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

_SLAB: Final = 8 << 20
"""Bytes taken from the system at a time, or more for what is larger."""


class Arena:
    """Hands out memory, and takes all of it back at once.

    Args:
        keep: bytes not to give back to the system, about.
    """

    def __init__(self, keep: int) -> None:
        self._keep = max(1, keep // _SLAB)
        self._slabs: list[Tensor] = []
        self._current = 0  # of the slabs
        self._used = 0  # bytes of it

    def take(self, nbytes: int) -> Tensor:
        """Return ``[nbytes]`` uint8, not initialised, which nobody else has until :meth:`reset`."""
        while self._current < len(self._slabs):
            slab = self._slabs[self._current]
            if self._used + nbytes <= len(slab):
                part = slab[self._used : self._used + nbytes]
                self._used += nbytes
                return part
            self._current += 1
            self._used = 0
        with torch.inference_mode(False):
            self._slabs.append(torch.empty(max(nbytes, _SLAB), dtype=torch.uint8))
        self._used = nbytes
        return self._slabs[-1][:nbytes]

    def room(self, nbytes: int) -> int:
        """Return how many parts of this size fit in a slab that is ordinary: at least 1."""
        return max(1, _SLAB // nbytes)

    def reset(self) -> None:
        """Take everything back: what was handed out is about to be written over."""
        self._slabs = [slab for slab in self._slabs if len(slab) == _SLAB][: self._keep]
        self._current = self._used = 0
