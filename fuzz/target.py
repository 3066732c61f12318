"""What a target is, and what may come of it."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from memcore.errors import MemcoreError


class Target(ABC):
    """Reads bytes as something that they may be.

    Args:
        folder: for files; nothing may be written beside it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def seeds(self) -> list[bytes]:
        """Return what memcore itself writes, to begin with."""

    @abstractmethod
    def read(self, data: bytes) -> None:
        """Read bytes in every way that there is; what is raised and is none of memcore's errors is a defect."""


def refused(read: Callable[[], object]) -> bool:
    """Return whether a call raises one of memcore's errors. Others are passed on."""
    try:
        read()
    except MemcoreError:
        return True
    return False


@contextmanager
def limited_memory(more: int) -> Iterator[None]:
    """Let this process have only so many bytes more, where the system can see to that."""
    if sys.platform == "win32":
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
