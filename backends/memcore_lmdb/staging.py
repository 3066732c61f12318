"""Chunks that were stored since the last commit, encoded as they will be written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from memcore.reserved import reserve

_LEAST: Final = 4 << 20
"""Bytes of room for embeddings to begin with; the system gives memory only for what is used of them."""


class StagedChunks:
    """Chunks of one namespace in memory, in the order they came.

    Args:
        vectors: ``V`` of their embeddings.
        size: ``E`` of their embeddings.
    """

    def __init__(self, vectors: int, size: int) -> None:
        self.payloads: dict[int, memoryview] = {}
        self.lengths: dict[int, int] = {}
        self._rows: dict[int, int] = {}
        self._used = 0
        with torch.inference_mode(False):
            self._vectors = torch.empty(0, vectors, size)

    def __len__(self) -> int:
        return len(self.payloads)

    @property
    def ids(self) -> list[int]:
        """The ids of the chunks, ascending."""
        return list(self.payloads)

    @property
    def tokens(self) -> int:
        """Tokens of all chunks together."""
        return sum(self.lengths.values())

    def add(self, ids: Sequence[int], payloads: Sequence[memoryview], lengths: Sequence[int], vectors: Tensor) -> None:
        """Add chunks with ids larger than all before, and embeddings ``[N, V, E]``, which are copied."""
        total = self._used + len(ids)
        if total > self._vectors.shape[0]:
            with torch.inference_mode(False):
                least = _LEAST // max(1, vectors[:1].nbytes)
                shape = (max(total, 2 * self._vectors.shape[0], least), *self._vectors.shape[1:])
                grown = reserve(shape, torch.float32, torch.device("cpu"))
                grown[: self._used] = self._vectors[: self._used]
                self._vectors = grown
        self._vectors[self._used : total].copy_(vectors)
        for row, (id, payload, length) in enumerate(zip(ids, payloads, lengths, strict=True), self._used):
            self.payloads[id] = payload
            self.lengths[id] = length
            self._rows[id] = row
        self._used = total

    def remove(self, id: int) -> None:
        """Remove a chunk. Its memory is free after the next commit."""
        del self.payloads[id], self.lengths[id], self._rows[id]

    def vectors(self) -> Tensor:
        """Return the embeddings of all chunks: ``[M, V, E]``."""
        if len(self) == self._used:
            return self._vectors[: self._used]
        return self._vectors[torch.tensor(list(self._rows.values()), dtype=torch.int64)]

    def vector(self, id: int) -> memoryview:
        """Return the embeddings of one chunk, as bytes."""
        return self._vectors[self._rows[id]].view(-1).view(torch.uint8).numpy().data
