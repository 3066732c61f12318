"""Peak memory of a stretch of code."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import psutil
import torch


class PeakMemory:
    """Context manager that measures how far memory rises above a given level.

    On CUDA the allocator counts exactly. Elsewhere the process's resident memory is sampled, which also counts what
    the allocator keeps from before.

    Attributes:
        mib: the peak, in MiB above the level.
    """

    INTERVAL = 0.02

    def __init__(self, device: torch.device, level: int | None = None) -> None:
        """Take the device to watch and the level to count from, in bytes; None for what is in use at entry."""
        self._device = device
        self._level = level
        self._peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.mib = 0.0

    @staticmethod
    def in_use(device: torch.device) -> int:
        """Return the bytes in use now."""
        if device.type == "cuda":
            return int(torch.cuda.memory_allocated(device))
        return int(psutil.Process().memory_info().rss)

    def __enter__(self) -> Self:
        if self._level is None:
            self._level = self.in_use(self._device)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._device.type == "cuda":
            self._peak = int(torch.cuda.max_memory_allocated(self._device))
        else:
            self._stop.set()
            self._thread.join()
        self.mib = max(0, self._peak - (self._level or 0)) / 2**20

    def _watch(self) -> None:
        while True:
            self._peak = max(self._peak, self.in_use(self._device))
            if self._stop.wait(self.INTERVAL):
                return
