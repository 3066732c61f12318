"""What an instance knows of one namespace: what was committed, and what came on top."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final, Self

import attrs
import torch
from torch import Tensor

from memcore.backend_checks import check_embeddings, rows_of
from memcore.chunk import ChunkBatch
from memcore_lmdb.blocks import ID, LENGTH, Block
from memcore_lmdb.format import ChunkShape, NamespaceRecord
from memcore_lmdb.payload import PayloadLayout
from memcore_lmdb.staging import StagedChunks

_PADDED: Final = 1 << 24
"""Bytes that a chunk may be padded to, whatever it holds."""

_FACTOR: Final = 16
"""By how much a chunk may be larger than that when it is padded than the longest that is there."""


class Namespace:
    """A namespace as its user sees it.

    What was committed is never changed: a change needs an :meth:`editable` twin, which remembers what it is based on.

    Args:
        record: as committed, or of a new namespace, with the number 0 and no chunks.
        stored: its blocks as committed.
    """

    def __init__(self, record: NamespaceRecord, stored: Sequence[Block] = ()) -> None:
        self.record = record
        self.stored = tuple(stored)
        self.layout = PayloadLayout(record.shape, record.compression)
        self.blocks = self.stored
        self.removed: list[int] = []
        self.staged = StagedChunks(record.next_id, record.shape.vectors, record.shape.size)
        self.next_id = record.next_id
        self.width = self._believable(record.width)
        self._count = record.count
        self._tokens = record.tokens
        self._ids: Tensor | None = None
        self._entries: Tensor | None = None
        self._ends: Any = None  # numpy's, which looks up a few places in a third of torch's time

    def _believable(self, width: int) -> int:
        """Return how wide what is fetched is to be: as wide as the longest chunk there ever was, unless it is padding.

        The width is no more than a number in the file, and what it says is reserved for each chunk that is fetched.
        """
        if self.layout.size(width) <= _PADDED:
            return width
        longest = max((int(block.entries[:, LENGTH].max()) for block in self.stored if len(block)), default=1)
        return width if self.layout.size(width) <= _FACTOR * self.layout.size(longest) else longest

    @classmethod
    def new(cls, name: str, chunks: ChunkBatch, compression: str) -> Self:
        """Return a namespace that may hold chunks like these."""
        return cls(
            NamespaceRecord(
                name=name,
                number=0,
                next_id=0,
                width=1,
                count=0,
                tokens=0,
                shape=ChunkShape.of(chunks),
                compression=compression,
            )
        )

    def editable(self) -> Namespace:
        """Return a twin with nothing on top of what was committed."""
        return Namespace(self.record, self.stored)

    @property
    def where(self) -> str:
        """What to call it in messages."""
        return f"namespace {self.record.name!r}"

    @property
    def in_blocks(self) -> int:
        """Chunks in ``blocks``."""
        return self._count

    @property
    def count(self) -> int:
        """Chunks it holds."""
        return self._count + len(self.staged)

    @property
    def ids(self) -> Tensor:
        """``[N]`` int64, ascending. Not to be written to."""
        if self._ids is None:
            with torch.inference_mode(False):
                staged = torch.tensor(self.staged.ids, dtype=torch.int64)
                self._ids = torch.cat((self.entries[:, ID], staged))
        return self._ids

    @property
    def entries(self) -> Tensor:
        """``[M, 4]`` int64: those of all blocks, as in :class:`memcore_lmdb.blocks.Block`. Not to be written to."""
        if self._entries is None:
            with torch.inference_mode(False):
                none = torch.empty(0, 4, dtype=torch.int64)
                self._entries = torch.cat((none, *(block.entries for block in self.blocks)))
                self._ends = torch.tensor(list(itertools.accumulate(map(len, self.blocks))), dtype=torch.int64).numpy()
        return self._entries

    def block_numbers(self, rows: Tensor) -> list[int]:
        """Return in which of ``blocks`` each row of ``entries`` lies."""
        numbers: list[int] = self._ends.searchsorted(rows.numpy(), side="right").tolist()
        return numbers

    def nbytes(self) -> int:
        """Return the bytes of embeddings and payloads."""
        return self.layout.nbytes(self.count, self._tokens + self.staged.tokens)

    def current_record(self, number: int) -> NamespaceRecord:
        """Return the record to commit."""
        return attrs.evolve(
            self.record,
            number=number,
            next_id=self.next_id,
            width=self.width,
            count=self.count,
            tokens=self._tokens + self.staged.tokens,
        )

    def rows(self, ids: Tensor) -> Tensor:
        """Return the place of each id in ``ids``: ``[N]`` int64.

        Raises:
            ChunkShapeError: the argument is not ``[N]`` int64.
            UnknownChunkError: an id is not stored; the message names it.
        """
        return rows_of(ids, self.ids, self.where)

    def check(self, chunks: ChunkBatch) -> None:
        """Raise unless these chunks may be staged here.

        Raises:
            ChunkShapeError: they are not like the others.
            BackendError: an embedding is NaN or infinite.
        """
        self.record.shape.check(self.record.name, chunks)
        check_embeddings(chunks)

    def stage(self, payloads: Sequence[memoryview], lengths: Sequence[int], embeddings: Tensor) -> Tensor:
        """Stage chunks that :meth:`check` finds nothing wrong with, and return their ids: ``[N]`` int64."""
        self.staged.add(payloads, lengths, embeddings.detach())
        first, self.next_id = self.next_id, self.next_id + len(payloads)
        self.width = max(self.width, *lengths) if lengths else self.width
        self._ids = None
        return torch.arange(first, self.next_id)

    def evict(self, ids: Tensor) -> None:
        """Remove chunks, all or none.

        Raises:
            ChunkShapeError: as in ``rows``.
            UnknownChunkError: as in ``rows``.
        """
        gone = torch.zeros(len(self.ids), dtype=torch.bool)
        gone[self.rows(ids)] = True
        blocks, first = [], 0
        for block in self.blocks:
            leaving = gone[first : first + len(block)]
            first += len(block)
            if bool(leaving.any()):
                entries = block.entries[leaving]
                self.removed += entries[:, ID].tolist()
                self._count -= len(entries)
                self._tokens -= int(entries[:, LENGTH].sum())
                block = block.without(leaving)
            blocks.append(block)
        for id in self.ids[first:][gone[first:]].tolist():
            self.staged.remove(id)
        self.blocks = tuple(blocks)
        self._ids = self._entries = None
