"""Chunks that were stored since the last commit, encoded as they will be written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from memcore.reserved import reserve

_LEAST: Final = 4 << 20
"""Bytes of room for embeddings to begin with; the system gives memory only for what is used of them."""


class StagedChunks:
    """Chunks of one namespace in memory, in the order they came.

    Their ids follow each other, so a chunk is found by its place: there is nothing to look up, and little to do for
    each chunk.

    Args:
        first: id of the first chunk that will come.
        vectors: ``V`` of their embeddings.
        size: ``E`` of their embeddings.
    """

    def __init__(self, first: int, vectors: int, size: int) -> None:
        self._first = first
        self._payloads: list[memoryview] = []
        self._lengths: list[int] = []
        self._removed: set[int] = set()
        with torch.inference_mode(False):
            self._vectors = torch.empty(0, vectors, size)

    def __len__(self) -> int:
        return len(self._payloads) - len(self._removed)

    @property
    def ids(self) -> list[int]:
        """The ids of the chunks, ascending."""
        return [self._first + row for row in self._rows()]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each chunk."""
        return [self._lengths[row] for row in self._rows()]

    @property
    def tokens(self) -> int:
        """Tokens of all chunks together."""
        return sum(self.lengths)

    def add(self, payloads: Sequence[memoryview], lengths: Sequence[int], vectors: Tensor) -> None:
        """Add chunks, which get the next ids, with embeddings ``[N, V, E]``, which are copied."""
        used = len(self._payloads)
        total = used + len(payloads)
        if total > self._vectors.shape[0]:
            with torch.inference_mode(False):
                least = _LEAST // max(1, vectors[:1].nbytes)
                shape = (max(total, 2 * self._vectors.shape[0], least), *self._vectors.shape[1:])
                grown = reserve(shape, torch.float32, torch.device("cpu"))
                grown[:used] = self._vectors[:used]
                self._vectors = grown
        self._vectors[used:total].copy_(vectors)
        self._payloads += payloads
        self._lengths += lengths

    def remove(self, id: int) -> None:
        """Remove a chunk. Its memory is free after the next commit."""
        self._removed.add(id - self._first)

    def payload(self, id: int) -> memoryview:
        """Return the payload of one chunk."""
        return self._payloads[id - self._first]

    def payloads(self) -> Iterator[tuple[int, memoryview]]:
        """Yield the id and the payload of each chunk."""
        for row in self._rows():
            yield self._first + row, self._payloads[row]

    def vectors(self) -> Tensor:
        """Return the embeddings of all chunks: ``[M, V, E]``."""
        if not self._removed:
            return self._vectors[: len(self)]
        return self._vectors[torch.tensor(self._rows(), dtype=torch.int64)]

    def vector(self, id: int) -> memoryview:
        """Return the embeddings of one chunk, as bytes."""
        return self._vectors[id - self._first].view(-1).view(torch.uint8).numpy().data

    def _rows(self) -> Sequence[int]:
        """Return the places of the chunks that are left."""
        rows = range(len(self._payloads))
        return [row for row in rows if row not in self._removed] if self._removed else rows
