"""Writing blocks: small neighbours become one, so that a search reads few large values after many small flushes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from memcore_lmdb.blocks import (
    BLOCK_BYTES,
    ID,
    ROW,
    Block,
    pack_entries,
    read_vectors,
)
from memcore_lmdb.format import BLOCK, VECTORS, ChunkShape, id_key


@attrs.frozen(eq=False)
class NewRows:
    """Vectors that are in no block yet.

    Attributes:
        entries: ``[M, 4]``, as in :class:`memcore_lmdb.blocks.Block`.
        vectors: ``[M, V, E]`` float32.
    """

    entries: Tensor
    vectors: Tensor

    def __len__(self) -> int:
        return len(self.entries)


Part = Block | NewRows


def rows_per_block(shape: ChunkShape) -> int:
    """Return how many chunks' vectors a block may hold."""
    return max(1, BLOCK_BYTES // max(1, shape.vector_bytes))


def write_blocks(
    txn: Any,
    number: int,
    shape: ChunkShape,
    where: str,
    *,
    stored: Sequence[Block],
    blocks: Sequence[Block],
    new: NewRows | None,
) -> tuple[Block, ...]:
    """Bring the blocks of a namespace up to date.

    Args:
        txn: to write with.
        number: of the namespace.
        shape: of its chunks.
        where: what to call it in messages.
        stored: the blocks as they are in the file.
        blocks: what is left of each; some may be without entries.
        new: chunks that came after them, if any.

    Returns:
        The blocks as they are then.
    """
    most = rows_per_block(shape)
    parts: list[Part] = [block for block in blocks if len(block)]
    if new is not None:
        parts += [NewRows(new.entries[at : at + most], new.vectors[at : at + most]) for at in range(0, len(new), most)]
    old = {block.first: block for block in stored}
    plan = _plan(parts, most)
    kept = {group[0].first for group in plan if _stays(group) and isinstance(group[0], Block)}
    # All that is read is read before anything is written: writing moves what was read.
    joined = [None if _stays(group) else _join(txn, number, shape, where, group) for group in plan]
    for first in old.keys() - kept:
        txn.delete(id_key(BLOCK, number, first))
        txn.delete(id_key(VECTORS, number, first))
    result = []
    for group, rows in zip(plan, joined, strict=True):
        block = group[0]
        if rows is not None:
            result.append(_write(txn, number, rows, checked=all(isinstance(p, Block) and p.checked for p in group)))
        elif isinstance(block, Block) and len(block) == len(old[block.first]):
            result.append(block)
        elif isinstance(block, Block):
            result.append(_write_entries(txn, number, block))
    return tuple(result)


def _plan(parts: Sequence[Part], most: int) -> list[list[Part]]:
    """Return which parts become one block each.

    A part joins the one before it unless that is more than twice as large. So a chunk's vectors are written again no
    more often than blocks double in size, and between two large blocks there are few small ones.
    """
    groups: list[list[Part]] = []
    sizes: list[int] = []
    for part in parts:
        groups.append([part])
        sizes.append(len(part))
        while len(groups) > 1 and sizes[-2] <= 2 * sizes[-1] and sizes[-2] + sizes[-1] <= most:
            last, size = groups.pop(), sizes.pop()
            groups[-1] += last
            sizes[-1] += size
    return groups


def _stays(group: Sequence[Part]) -> bool:
    """Return whether the vectors stay where they are: one block, of which at least half is left."""
    part = group[0]
    return len(group) == 1 and isinstance(part, Block) and 2 * len(part) >= part.rows


def _join(txn: Any, number: int, shape: ChunkShape, where: str, group: Sequence[Part]) -> NewRows:
    """Copy the rows that are left of all parts together. Their checksums go with them, right or wrong."""
    entries = torch.cat([part.entries for part in group])
    if len(group) == 1 and isinstance(group[0], NewRows):
        entries[:, ROW] = torch.arange(len(entries))
        return NewRows(entries, group[0].vectors)
    vectors = torch.empty(len(entries), shape.vectors, shape.size)
    at = 0
    for part in group:
        room = vectors[at : at + len(part)]
        if isinstance(part, NewRows):
            room.copy_(part.vectors)
        else:
            torch.index_select(read_vectors(txn, number, part, shape, where), 0, part.entries[:, ROW], out=room)
        at += len(part)
    entries[:, ROW] = torch.arange(len(entries))
    return NewRows(entries, vectors)


def _write(txn: Any, number: int, rows: NewRows, *, checked: bool) -> Block:
    block = Block(int(rows.entries[0, ID]), len(rows), rows.entries, 0, checked)
    txn.put(id_key(VECTORS, number, block.first), rows.vectors.view(-1).view(torch.uint8).numpy().data)
    return _write_entries(txn, number, block)


def _write_entries(txn: Any, number: int, block: Block) -> Block:
    value = pack_entries(block.rows, block.entries)
    txn.put(id_key(BLOCK, number, block.first), value)
    return attrs.evolve(block, value=int.from_bytes(value[:8], "little"))
