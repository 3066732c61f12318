"""Reading and writing at a place in a file, on every system: Windows has neither ``os.pread`` nor ``os.pwrite``.

Both move the descriptor to that place first, so a descriptor must be used by one thread at a time.
"""

from __future__ import annotations

import os


def read_at(file: int, size: int, at: int) -> bytes:
    """Return so many bytes from a place on, fewer if the file ends before."""
    os.lseek(file, at, os.SEEK_SET)
    return os.read(file, size)


def write_at(file: int, content: bytes, at: int) -> None:
    """Write at a place, in all or raise OSError."""
    os.lseek(file, at, os.SEEK_SET)
    while content:
        content = content[os.write(file, content) :]
