"""Text files read whole, and files that are either written whole or left as they were."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from memcore.errors import MemcoreError, UnsupportedInputError, WriteError


def read_text(path: Path) -> str:
    """Read a UTF-8 file.

    Raises:
        UnsupportedInputError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnsupportedInputError(f"cannot read {str(path)!r} as UTF-8 text: {error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a file to write, which then takes the place of ``path`` in one go, and is durable.

    If the block raises, ``path`` is as it was, and nothing is left beside it.

    Raises:
        WriteError: it cannot be written, by the block either.
    """
    new = path.with_name(f"{path.name}.part")
    try:
        yield new
        sync(new)
        new.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        if isinstance(error, (OSError, SafetensorError)) and not isinstance(error, MemcoreError):
            raise WriteError(f"cannot write {str(path)!r}: {error}; what was there is as it was") from error
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable: after a power cut they are there."""
    try:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:
        if path.is_dir():  # Windows opens none
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
