"""Embeddings held in memory: of a small namespace all at once, so that a search is one product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import attrs
import torch
from torch import Tensor

from memcore.reserved import reserve
from memcore_lmdb.blocks import ROW, Block
from memcore_lmdb.namespace import Namespace

_CPU: Final = torch.device("cpu")

_IDLE: Final = 1024
"""Searches after which what was not searched meanwhile makes room for others. Fewer would have namespaces that are
searched by turns push each other out."""


@attrs.define(eq=False)
class _Held:
    """The rows of some blocks, in their order.

    Attributes:
        room: ``[n, V, E]`` float32, of which the first are in use.
        blocks: whose rows they are.
        rows: ``[N, V, E]``, those in use.
        used: when, in searches.
    """

    room: Tensor
    blocks: Sequence[Block]
    rows: Tensor
    used: int


class HeldVectors:
    """Copies of the embeddings of namespaces, for as long as all of them together are not too many.

    They are copies of blocks, which never change: after a commit, by whatever process, there are others in their place,
    and only those are read. Nothing here knows what is in the file, so it is to be asked inside of a transaction for
    a namespace as it is there.

    Args:
        limit: bytes to hold at most, 0 for none.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[int, _Held] = {}
        self._searches = 0

    def rows(self, namespace: Namespace, read: Callable[[Block], Tensor]) -> Tensor | None:
        """Return the embeddings of all chunks in a namespace's blocks, ``[N, V, E]``, None if they are not held.

        Args:
            namespace: as it is in the file, with or without changes on top.
            read: returns the vectors of a block, ``[rows, V, E]``; what it raises is passed on.
        """
        self._searches += 1
        number = namespace.record.number
        held = self._held.get(number)
        if held is None or held.blocks is not namespace.blocks:
            held = self._brought_up_to_date(held, namespace, read)
            if held is None:
                return None
        held.used = self._searches
        return held.rows

    def forget(self, number: int) -> None:
        """Forget about a namespace that was dropped."""
        self._held.pop(number, None)

    def _brought_up_to_date(
        self, held: _Held | None, namespace: Namespace, read: Callable[[Block], Tensor]
    ) -> _Held | None:
        shape, number = namespace.record.shape, namespace.record.number
        count = namespace.in_blocks
        if not count or count * shape.vector_bytes > self._limit:
            self.forget(number)
            return None
        known = 0  # of the blocks
        for old, new in zip(held.blocks if held else (), namespace.blocks, strict=False):
            if old is not new:
                break
            known += 1
        at = sum(map(len, namespace.blocks[:known]))
        with torch.inference_mode(False):
            if held is None or count > len(held.room):
                # Room to grow, where the limit leaves any.
                rows = count if held is None else min(count + count // 4, self._limit // shape.vector_bytes)
                if not self._make_room(number, rows * shape.vector_bytes):
                    self.forget(number)
                    return None
                room = reserve((rows, shape.vectors, shape.size), torch.float32, _CPU)
                if held is not None:
                    room[:at] = held.room[:at]
                held = _Held(room, (), room[:0], 0)
            self.forget(number)  # until all of it is there
            for block in namespace.blocks[known:]:
                target = held.room[at : at + len(block)]
                if len(block) == block.rows:
                    target.copy_(read(block))
                elif len(block):
                    torch.index_select(read(block), 0, block.entries[:, ROW], out=target)
                at += len(block)
            held.blocks, held.rows = namespace.blocks, held.room[:count]
        self._held[number] = held
        return held

    def _make_room(self, number: int, size: int) -> bool:
        """Return whether a namespace may have so many bytes, after others that are idle have left if that is needed."""
        most = self._limit - size
        if sum(held.room.nbytes for other, held in self._held.items() if other != number) > most:
            self._held = {
                other: held
                for other, held in self._held.items()
                if other == number or held.used + _IDLE > self._searches
            }
        return sum(held.room.nbytes for other, held in self._held.items() if other != number) <= most
