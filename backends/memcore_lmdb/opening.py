"""Opening a file of LMDB's, to read it or to write."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, Final

import attrs
import lmdb

from memcore_lmdb.explanation import MOST_READERS

SLACK: Final = 1 << 20
"""Bytes of pages that a transaction may need beside what it writes."""


@attrs.frozen(kw_only=True)
class Writing:
    """How to write: the options of the same names."""

    map_size: int
    max_map_size: int | None
    sync: bool


def open_file(file: Path, writing: Writing | None, *, create: bool) -> lmdb.Environment:
    """Open a file.

    Args:
        file: which.
        writing: how to write; None to read only.
        create: whether it may be a new one.

    Raises:
        FileNotFoundError: it is not there.
        lmdb.Error: LMDB cannot open it.
    """
    settings: dict[str, Any] = {"subdir": False, "create": create, "mode": 0o644, "readonly": writing is None}
    settings["max_readers"] = MOST_READERS
    if hasattr(lmdb.Environment, "lib_version"):
        settings["lib_version"] = 0  # of the format of new files
    if writing is not None:
        wanted = writing.map_size if writing.max_map_size is None else min(writing.map_size, writing.max_map_size)
        # A file that is larger already, as the limit was another, is opened as large as it is, and does not grow.
        settings.update(sync=writing.sync, metasync=writing.sync, map_size=max(wanted, file_size(file)))
    else:
        settings.update(map_size=max(SLACK, file_size(file)))
    try:
        return lmdb.open(str(file), **settings)
    except lmdb.Error as error:
        if not file.exists():
            raise FileNotFoundError(file) from error
        if writing is None and not _can_lock(file):
            # On media that cannot be written to nobody writes, so there is nothing to lock out.
            return lmdb.open(str(file), lock=False, **settings)
        raise


def file_size(file: Path) -> int:
    """Return the bytes of a file, 0 if it is not there."""
    return file.stat().st_size if file.exists() else 0


def _can_lock(file: Path) -> bool:
    """Return whether LMDB can have its lock file beside this one."""
    try:
        descriptor = os.open(f"{file}-lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS)
    os.close(descriptor)
    return True
