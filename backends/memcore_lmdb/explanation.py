"""What goes wrong in LMDB and below it, said in memcore's errors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import lmdb

from memcore.errors import BackendError, CorruptedError

MOST_READERS: Final = 1024
"""Instances that may have a file open, in all processes together. Each takes 64 bytes of the lock file."""

_DAMAGE: Final = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.VersionMismatchError)


def explanation(error: lmdb.Error | OSError, file: Path) -> BackendError:
    """Return the error to raise in place of one of LMDB or the operating system; CorruptedError where it is damage."""
    if isinstance(error, _DAMAGE):
        return CorruptedError(
            f"{file} is no LMDB file or a damaged one ({error}); restore it from a copy, or name another folder"
        )
    if isinstance(error, lmdb.MapFullError):
        return BackendError(f"the memory in {file.parent} is full: {error}")
    if isinstance(error, lmdb.ReadersFullError):
        return BackendError(
            f"the memory in {file.parent} is being read by as many instances as can be, {MOST_READERS} unless the "
            "first of them was of another program; close some"
        )
    return BackendError(f"the memory in {file.parent} cannot be read or written: {error}{_free_space(file.parent)}")


def _free_space(folder: Path) -> str:
    """Return in words how much room there is: of a full disk LMDB says as a rule no more than that it failed."""
    try:
        return f" ({shutil.disk_usage(folder).free:,} bytes are free on the disk)"
    except OSError:
        return ""
