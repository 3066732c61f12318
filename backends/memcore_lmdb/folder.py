"""The files of a memory in its folder: ``memory-000001.lmdb``, one higher after each compaction."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Final

from memcore.errors import BackendError, CorruptedError

WRITER_LOCK: Final = "writer.lock"
UNFINISHED_COPY: Final = "compacting.tmp"

_FILE: Final = re.compile(r"memory-(\d{6,})\.lmdb")
_LOCK_SUFFIX: Final = "-lock"  # what LMDB appends


def prepare_folder(folder: Path) -> None:
    """Make the folder of a memory, or see that what is there may be one.

    Raises:
        BackendError: it cannot be made.
        CorruptedError: it holds something else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise BackendError(
            f"cannot keep a memory in {folder}: {error}; name a folder that can be written to"
        ) from error
    if current_file(folder) is None:
        others = [name for name in names if not _is_ours(name)]
        if others:
            raise CorruptedError(
                f"{folder} holds no memory but other files ({', '.join(others[:3])}): name an empty folder or a new one"
            )


def current_file(folder: Path) -> Path | None:
    """Return the file of the memory, None if there is none.

    Raises:
        BackendError: the folder cannot be read, or a file of the memory is a link.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BackendError(f"cannot read a memory in {folder}: {error}; name its folder") from error
    check_no_links(folder, names)
    generations = [int(match[1]) for match in map(_FILE.fullmatch, names) if match]
    return _file(folder, max(generations)) if generations else None


def check_no_links(folder: Path, names: list[str]) -> None:
    """Raise if a file of the memory is a link: what is written to it would be written to somewhere else.

    Raises:
        BackendError: one is.
    """
    for name in names:
        if _is_ours(name) and (folder / name).is_symlink():
            raise BackendError(
                f"{folder / name} is a link to {os.readlink(folder / name)}: the files of a memory must lie in its "
                "folder, which may be a link itself"
            )


def first_file(folder: Path) -> Path:
    """Return the name of the file of a new memory."""
    return _file(folder, 1)


def next_file(file: Path) -> Path:
    """Return the name of the file that takes the place of this one."""
    match = _FILE.fullmatch(file.name)
    assert match
    return _file(file.parent, int(match[1]) + 1)


def remove_leftovers(file: Path) -> None:
    """Remove what a compaction leaves beside the file, at its end or when it is cut short."""
    for name in os.listdir(file.parent):
        if _is_ours(name) and name not in (WRITER_LOCK, file.name, file.name + _LOCK_SUFFIX):
            # Where open files cannot be removed, the next writer tries again.
            with contextlib.suppress(OSError):
                (file.parent / name).unlink()


def _file(folder: Path, generation: int) -> Path:
    return folder / f"memory-{generation:06}.lmdb"


def _is_ours(name: str) -> bool:
    return name in (WRITER_LOCK, UNFINISHED_COPY) or bool(_FILE.fullmatch(name.removesuffix(_LOCK_SUFFIX)))
