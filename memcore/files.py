"""Text files read whole, JSON, and files that are either written whole or left as they were."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError

from memcore.errors import MemcoreError, UnsupportedInputError, WriteError

ENCODING: Final = "utf-8-sig"
"""Of texts that are read: UTF-8, with or without a mark at the beginning."""


def read_text(path: Path) -> str:
    """Read a UTF-8 file, without the mark that Windows puts at its beginning.

    Raises:
        UnsupportedInputError: it cannot be read.
    """
    try:
        return path.read_text(encoding=ENCODING)
    except OSError as error:
        raise UnsupportedInputError(f"cannot read {str(path)!r} as UTF-8 text: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UnsupportedInputError(f"cannot read {not_utf8(str(path), error)}") from error


def not_empty(text: str, name: str) -> str:
    """Return a text that was read.

    Raises:
        UnsupportedInputError: there is nothing in it; ``name`` says in what.
    """
    if not text.strip():
        raise UnsupportedInputError(f"{name} has no text in it")
    return text


def names_file(text: str) -> bool:
    """Say whether what is taken for a text is the name of a file that is there."""
    if len(text) > 1024 or "\n" in text:
        return False
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # no name at all, such as one with a zero in it
        return False


def make_folder(path: Path) -> None:
    """Make a folder, and those that it lies in, unless it is there.

    Raises:
        WriteError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise WriteError(f"{str(path)!r} is a file; name a folder to write to") from error
    except OSError as error:
        raise WriteError(f"cannot make the folder {str(path)!r}: {error.strerror or error}") from error


def not_utf8(name: str, error: UnicodeDecodeError) -> str:
    """Return why a file is no UTF-8 text, and what it may be."""
    begin = error.object[:4]
    if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        cure = "it begins as UTF-16 does: save it as UTF-8"
    elif b"\0" in error.object[:1024]:
        cure = "it is no text at all"
    else:
        cure = "save it as UTF-8 if it is a text in another encoding"
    return f"{name!r} as UTF-8 text: byte {error.object[error.start]:#04x} at {error.start:,}; {cure}"


def parse_json(text: str | bytes) -> Any:
    """Parse JSON from outside.

    Raises:
        ValueError: it is none, or nested more deeply than Python's parser goes.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"it is nested too deeply: {error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a file to write, which then takes the place of ``path`` in one go, and is durable.

    If the block raises, ``path`` is as it was, and nothing is left beside it.

    Raises:
        WriteError: it cannot be written, by the block either.
    """
    new = path.with_name(f"{path.name}.part")
    try:
        if new.is_symlink():  # nothing is to be written through it to somewhere else
            new.unlink()
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
