"""Copying a namespace inside of the file, in transactions of bounded size, and clearing up after copies cut short."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Final

import attrs

from memcore_lmdb.blocks import read_blocks
from memcore_lmdb.environment import Environment
from memcore_lmdb.format import (
    BLOCK,
    NAMESPACE,
    PAYLOAD,
    UNFINISHED,
    VECTORS,
    NamespaceRecord,
    id_key,
    keys_from,
    name_key,
    number_key,
    seal,
)
from memcore_lmdb.namespace import Namespace
from memcore_lmdb.overlay import delete_contents, take_number

_STEP: Final = 32 << 20
"""Bytes copied in one transaction, or one value if that is larger."""


def copy_namespace(environment: Environment, source: Namespace, target: str) -> tuple[Namespace, int | None]:
    """Copy a committed namespace under another name, ids and checksums included, in place of what has that name.

    The target is there all at once, with the last transaction. Until then its number is marked as unfinished.

    Args:
        environment: open for writing, with nothing staged.
        source: as it is in the file.
        target: another name.

    Returns:
        The target, as committed, and the number of what it took the place of; None if there was nothing.

    Raises:
        BackendError: there is no room; nothing has changed.
    """
    numbers: list[int] = []

    def begin(txn: Any) -> None:
        numbers[:] = [take_number(txn)]
        txn.put(number_key(UNFINISHED, numbers[0]), seal(b""))

    def publish(txn: Any) -> tuple[NamespaceRecord, int | None]:
        before = txn.get(name_key(NAMESPACE, target))
        replaced = None if before is None else NamespaceRecord.unpack(before).number
        if replaced is not None:
            delete_contents(txn, replaced)
        record = attrs.evolve(source.record, name=target, number=numbers[0])
        txn.put(name_key(NAMESPACE, target), record.pack())
        txn.delete(number_key(UNFINISHED, numbers[0]))
        return record, replaced

    environment.write(begin, 0)
    try:
        for keys, size in _steps(source):
            environment.write(functools.partial(_copy_values, keys=keys, number=numbers[0]), size)
        record, replaced = environment.write(publish, 0)
    except BaseException:
        environment.write(_delete_unfinished, 0)
        raise
    with environment.read() as txn:
        return Namespace(record, read_blocks(txn, record.number, f"namespace {target!r}")), replaced


def clear_unfinished(environment: Environment) -> None:
    """Delete what copies that were cut short have left."""
    with environment.read() as txn:
        found = any(True for _ in keys_from(txn.cursor(), UNFINISHED))
    if found:
        environment.write(_delete_unfinished, 0)


def _steps(source: Namespace) -> Iterator[tuple[list[bytes], int]]:
    """Yield the keys to copy, in groups, each with the bytes of its values."""
    keys: list[bytes] = []
    size = 0
    for key, nbytes in _keys(source):
        if keys and size + nbytes > _STEP:
            yield keys, size
            keys, size = [], 0
        keys.append(key)
        size += nbytes
    yield keys, size


def _keys(source: Namespace) -> Iterator[tuple[bytes, int]]:
    """Yield the key of each value, and about how many bytes that has."""
    number = source.record.number
    for block in source.stored:
        yield id_key(BLOCK, number, block.first), block.entries.nbytes
        yield id_key(VECTORS, number, block.first), block.rows * source.record.shape.vector_bytes
        for id, _, length, _ in block.entries.tolist():
            yield id_key(PAYLOAD, number, id), source.layout.size(length)


def _copy_values(txn: Any, keys: Sequence[bytes], number: int) -> None:
    for key in keys:
        value = txn.get(key)
        if value is not None:  # what is missing is missing in the copy, too
            # A copy of its own, as writing moves what was read.
            txn.put(key[:1] + number.to_bytes(8, "big") + key[9:], bytes(value))


def _delete_unfinished(txn: Any) -> None:
    for key in list(keys_from(txn.cursor(), UNFINISHED)):
        if len(key) == len(number_key(UNFINISHED, 0)):  # or it is none of ours
            delete_contents(txn, int.from_bytes(key[1:], "big"))
        txn.delete(key)
