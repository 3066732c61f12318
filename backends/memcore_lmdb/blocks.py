"""Embeddings on disk: blocks of many chunks' vectors, each with a list of which rows are whose."""

from __future__ import annotations

import struct
import warnings
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, Final

import attrs
import torch
from torch import Tensor
from xxhash import xxh3_64_intdigest

from memcore.errors import CorruptedError
from memcore_lmdb.format import BLOCK, VECTORS, ChunkShape, id_key, keys_from, number_key, seal, split_id_key, unseal

BLOCK_BYTES: Final = 1 << 20
"""Vectors of a block take at most this, or are of one chunk."""

ID, ROW, LENGTH, CHECKSUM = range(4)
"""Columns of a block's entries."""

_ROWS: Final = struct.Struct("<Q")
_ENTRY_BYTES: Final = 4 * torch.int64.itemsize

with warnings.catch_warnings():
    # That a buffer is read-only torch says once per process, to whoever is first. Nothing here writes to such tensors.
    warnings.simplefilter("ignore")
    torch.frombuffer(b"\0", dtype=torch.uint8)


@attrs.define(eq=False)
class Block:
    """The vectors of neighbouring chunks, as far as they are known without reading them.

    Attributes:
        first: what its keys end with; the id of a chunk that is or was in it.
        rows: vectors' rows that are stored, of removed chunks too.
        entries: ``[M, 4]`` int64, of the chunks that are left: id, ascending; row; length; checksum of the vectors.
        value: checksum of what the entries are stored as.
        checked: whether the vectors of all entries were found to match their checksums.
    """

    first: int
    rows: int
    entries: Tensor
    value: int
    checked: bool = False

    def __len__(self) -> int:
        return int(self.entries.shape[0])  # quicker than its len()

    def without(self, gone: Tensor) -> Block:
        """Return the block without the entries where ``gone``, ``[M]`` bool, is true."""
        return attrs.evolve(self, entries=self.entries[~gone])


def pack_entries(rows: int, entries: Tensor) -> bytes:
    """Return the value that tells which rows of a block are whose."""
    return seal(_ROWS.pack(rows) + entries.numpy().tobytes())


def read_blocks(txn: Any, number: int, where: str, known: Iterable[Block] = ()) -> tuple[Block, ...]:
    """Read what is known of all blocks of a namespace, without their vectors.

    Args:
        txn: to read from.
        number: of the namespace.
        where: what to call it in messages.
        known: what was read before; blocks that are still the same are taken from here.

    Raises:
        CorruptedError: the entries of a block are damaged.
    """
    before = {block.first: block for block in known}
    blocks = []
    cursor = txn.cursor()
    for key in keys_from(cursor, number_key(BLOCK, number)):
        _, first = split_id_key(key)
        value = cursor.value()
        old = before.get(first)
        if old is not None and old.value == int.from_bytes(value[:8], "little"):
            blocks.append(old)
        else:
            blocks.append(unpack_block(first, value, where))
    return tuple(blocks)


def unpack_block(first: int, value: memoryview, where: str) -> Block:
    """Return a block from the value that :func:`pack_entries` made.

    Raises:
        CorruptedError: it is damaged.
    """
    where = f"{where}, the list of the block of chunk {first}"
    content = unseal(value, where)
    if len(content) <= _ROWS.size or (len(content) - _ROWS.size) % _ENTRY_BYTES:
        raise CorruptedError(f"{where} has {len(content)} bytes, which is no number of entries")
    rows = _ROWS.unpack_from(content)[0]
    with torch.inference_mode(False):
        entries = torch.frombuffer(bytearray(content[_ROWS.size :]), dtype=torch.int64).view(-1, 4)
    ids, places, lengths, _ = entries.numpy().T
    if not (ids[0] >= 0 and ascending(ids) and places[0] >= 0 and ascending(places) and places[-1] < rows):
        raise CorruptedError(f"{where} is of {rows} rows, and its ids or rows are not in order")
    if lengths.min() < 1:
        raise CorruptedError(f"{where} has a chunk without tokens")
    return Block(first, rows, entries, int.from_bytes(value[:8], "little"))


def ascending(numbers: Any) -> bool:
    """Return whether numbers, numpy's ``[n]``, are in order, each once."""
    return bool((numbers[1:] > numbers[:-1]).all())


def read_vectors(txn: Any, number: int, block: Block, shape: ChunkShape, where: str) -> Tensor:
    """Return the vectors of a block, ``[rows, V, E]`` float32: a view of the map, to be read inside the transaction.

    Raises:
        CorruptedError: they are not there, or not as many as they should be.
    """
    value = txn.get(id_key(VECTORS, number, block.first))
    check_vectors(value, block, shape, where)
    return vectors_of(value, block.rows, shape)


def check_vectors(value: memoryview | None, block: Block, shape: ChunkShape, where: str) -> None:
    """Raise CorruptedError unless this value may be the vectors of a block, by its size."""
    expected = block.rows * shape.vector_bytes
    if value is None or len(value) != expected:
        found = "missing" if value is None else f"{len(value)} bytes instead of {expected}"
        raise CorruptedError(
            f"{where}, chunks {int(block.entries[0, ID])} to {int(block.entries[-1, ID])}: the embeddings are {found}"
        )


def vectors_of(value: memoryview, rows: int, shape: ChunkShape) -> Tensor:
    """Return a value as ``[rows, V, E]`` float32."""
    if not len(value):
        return torch.empty(rows, shape.vectors, shape.size)
    vectors = torch.frombuffer(value, dtype=torch.float32)
    if vectors.data_ptr() % vectors.itemsize:
        # Only small values lie anywhere.
        vectors = torch.frombuffer(bytearray(value), dtype=torch.float32)
    return vectors.view(rows, shape.vectors, shape.size)


def damaged_entries(vectors: Tensor, entries: Tensor) -> list[int]:
    """Return the ids whose vectors do not match their checksums.

    Args:
        vectors: ``[rows, V, E]`` float32, contiguous.
        entries: those to check.
    """
    flat = vectors.view(-1).view(torch.uint8).numpy().data
    size = len(flat) // len(vectors) if len(vectors) else 0
    return [
        id
        for id, row, _, checksum in entries.tolist()
        if xxh3_64_intdigest(flat[row * size : (row + 1) * size]) != checksum % (1 << 64)
    ]


def new_entries(ids: Sequence[int], lengths: Sequence[int], vectors: Tensor) -> Tensor:
    """Return entries ``[M, 4]`` for chunks whose vectors are the rows of ``vectors``, ``[M, V, E]``, in this order."""
    flat = vectors.contiguous().view(-1).view(torch.uint8).numpy().data
    size = len(flat) // len(ids)
    # Through arrays and not tuples, of which so many would have Python look for garbage.
    checksums = array("Q", [xxh3_64_intdigest(flat[row * size : (row + 1) * size]) for row in range(len(ids))])
    with torch.inference_mode(False):
        columns = (array("q", ids), array("q", range(len(ids))), array("q", lengths), checksums)
        return torch.stack([torch.frombuffer(column, dtype=torch.int64) for column in columns], dim=1)
