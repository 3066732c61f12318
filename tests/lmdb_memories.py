"""Memories of the ``lmdb`` backend for tests: opened without waiting for the disk, and changed behind its back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lmdb
from memcore_lmdb.backend import LmdbBackend
from memcore_lmdb.options import LmdbOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def open_at(path: Path, **options: Any) -> LmdbBackend:
    """Open a memory; its commits do not wait for the disk unless ``sync`` is given."""
    return LmdbBackend(LmdbOptions(path=path, **{"sync": False, **options}))


def file_of(path: Path) -> Path:
    """Return the file of a memory."""
    (file,) = path.glob("memory-*.lmdb")
    return file


def keys_of(path: Path, kind: bytes) -> list[bytes]:
    """Return the keys of this kind in a memory that is closed."""
    with lmdb.open(str(file_of(path)), subdir=False) as env, env.begin() as txn:
        return [key for key, _ in txn.cursor() if key[:1] == kind]


def change(path: Path, key: bytes, edit: Callable[[bytearray], object]) -> None:
    """Change a value in a memory that is closed."""
    with lmdb.open(str(file_of(path)), subdir=False) as env, env.begin(write=True) as txn:
        value = bytearray(txn.get(key) or b"")
        edit(value)
        txn.put(key, bytes(value))


def flip(value: bytearray) -> None:
    """Change one bit in the middle."""
    value[len(value) // 2] ^= 1
