"""Memory for what is staged, kept from one commit to the next: fresh pages cost more than what is written to them."""

from __future__ import annotations

from typing import Final

import torch

from memcore.reserved import reserve, takes_memory_late

_CPU: Final = torch.device("cpu")

_LEAST: Final = 8 << 20
"""Bytes taken from the system at a time, or more for what is larger."""

_MOST: Final = 64 << 20
"""The same where memory is taken only when it is written to. Large enough for huge pages, which cost less."""


class Arena:
    """Hands out memory, and takes all of it back at once.

    Args:
        keep: bytes not to give back to the system, about.
    """

    def __init__(self, keep: int) -> None:
        self._slab = max(_LEAST, min(_MOST, keep)) if takes_memory_late(_CPU) else _LEAST
        self._keep = max(1, keep // self._slab)
        self._slabs: list[memoryview] = []
        self._current = 0  # of the slabs
        self._used = 0  # bytes of it

    def take(self, nbytes: int) -> memoryview:
        """Return as many bytes, not initialised, which nobody else has until :meth:`reset`."""
        while self._current < len(self._slabs):
            slab = self._slabs[self._current]
            if self._used + nbytes <= len(slab):
                part = slab[self._used : self._used + nbytes]
                self._used += nbytes
                return part
            self._current += 1
            self._used = 0
        with torch.inference_mode(False):
            self._slabs.append(reserve((max(nbytes, self._slab),), torch.uint8, _CPU).numpy().data)
        self._used = nbytes
        return self._slabs[-1][:nbytes]

    def room(self, nbytes: int) -> int:
        """Return how many parts of this size fit in a slab that is ordinary: at least 1."""
        return max(1, self._slab // nbytes)

    def reset(self) -> None:
        """Take everything back: what was handed out is about to be written over."""
        self._slabs = [slab for slab in self._slabs if len(slab) == self._slab][: self._keep]
        self._current = self._used = 0
