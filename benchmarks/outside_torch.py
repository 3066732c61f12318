"""Memory of a GPU that torch's allocator knows nothing of: that of faiss, which has an allocator of its own."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import torch


class OutsideTorch:
    """Context manager that measures how far what torch's allocator does not hold of a GPU rises.

    The driver tells how much of the GPU is taken, and torch how much of that is its own. Both are asked again and
    again, as nobody counts the difference; what other processes take counts, too. Of other devices nothing is told.

    Attributes:
        peak: the most, in bytes above what it was when this was made.
    """

    INTERVAL = 0.02

    def __init__(self, device: torch.device) -> None:
        """Take the device to watch."""
        self.peak = 0
        self._device = device
        self._level = self.in_use(device)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @staticmethod
    def in_use(device: torch.device) -> int:
        """Return the bytes that others than torch's allocator hold now."""
        if device.type != "cuda":
            return 0
        before = torch.cuda.memory_reserved(device)
        free, total = torch.cuda.mem_get_info(device)
        # What torch takes or gives back between the two questions must not look like somebody else's.
        return int(total - free - max(before, torch.cuda.memory_reserved(device)))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while True:
            self._look()
            if self._stop.wait(self.INTERVAL):
                return

    def _look(self) -> None:
        self.peak = max(self.peak, self.in_use(self._device) - self._level)
