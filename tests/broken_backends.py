"""Backends with one fault each, with the kit's tests for them: ``test_testing.py`` runs these and expects failures."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import attrs
import torch

from memcore.errors import BackendError
from memcore.exact_backend import ExactBackend, ExactOptions
from memcore.testing import BackendTests, bits, select

if TYPE_CHECKING:
    from pathlib import Path

    from memcore.backend import MemoryBackend
    from memcore.chunk import ChunkBatch, SearchResult


class OnExact(BackendTests):
    """The kit on a backend that is the exact one but for its fault."""

    kind: type[ExactBackend] = ExactBackend

    def open(self, path: Path) -> MemoryBackend:
        return self.kind(ExactOptions())


class LosesABit(ExactBackend):
    def store(self, namespace: str, chunks: ChunkBatch) -> torch.Tensor:
        keys = chunks.keys.clone()
        if len(chunks):
            bits(keys)[-1, 0, 0, 0] ^= 1
        return super().store(namespace, attrs.evolve(chunks, keys=keys))


class SwapsThereAndBack(ExactBackend):
    def store(self, namespace: str, chunks: ChunkBatch) -> torch.Tensor:
        return super().store(namespace, attrs.evolve(chunks, keys=chunks.values, values=chunks.keys))

    def fetch(self, namespace: str, ids: torch.Tensor) -> ChunkBatch:
        chunks = super().fetch(namespace, ids)
        return attrs.evolve(chunks, keys=chunks.values, values=chunks.keys)


class ReusesIds(ExactBackend):
    def evict(self, namespace: str, ids: torch.Tensor) -> None:
        super().evict(namespace, ids)
        held = self.ids(namespace)
        self._namespaces[namespace].table._next_id = int(held[-1]) + 1 if len(held) else 0


class LeaksNamespaces(ExactBackend):
    def fetch(self, namespace: str, ids: torch.Tensor) -> ChunkBatch:
        return super().fetch(namespace.rstrip(), ids)

    def store(self, namespace: str, chunks: ChunkBatch) -> torch.Tensor:
        return super().store(namespace.rstrip(), chunks)


class AliasesTensors(ExactBackend):
    def store(self, namespace: str, chunks: ChunkBatch) -> torch.Tensor:
        ids = super().store(namespace, chunks)
        self.given = ids, chunks
        return ids

    def fetch(self, namespace: str, ids: torch.Tensor) -> ChunkBatch:
        own, chunks = self.given
        return chunks if torch.equal(own, ids) else super().fetch(namespace, ids)


class ScoresByTheFirstVector(ExactBackend):
    def retrieve(self, namespace: str, queries: torch.Tensor, top_k: int) -> SearchResult:
        found = self._namespaces.get(namespace)
        if found is None or not len(found.table):
            return super().retrieve(namespace, queries, top_k)
        with ExactBackend(ExactOptions()) as other:
            chunks = found.table.take(found.table.ids)
            own = other.store("a", attrs.evolve(chunks, embeddings=chunks.embeddings[:, :1].clone()))
            result = other.retrieve("a", queries, top_k)
        known = result.ids >= 0
        result.ids[known] = found.table.ids[torch.searchsorted(own, result.ids[known])]
        return result


class FindsTheEvicted(ExactBackend):
    def evict(self, namespace: str, ids: torch.Tensor) -> None:
        before = self._namespaces[namespace].table.copy() if namespace in self._namespaces else None
        super().evict(namespace, ids)
        self.stale = {namespace: before}

    def retrieve(self, namespace: str, queries: torch.Tensor, top_k: int) -> SearchResult:
        table = getattr(self, "stale", {}).get(namespace)
        now = self._namespaces.get(namespace)
        if table is None or now is None:
            return super().retrieve(namespace, queries, top_k)
        found, now.table = now.table, table
        try:
            return super().retrieve(namespace, queries, top_k)
        finally:
            now.table = found


class StoresHalfOfWhatItRefuses(ExactBackend):
    def store(self, namespace: str, chunks: ChunkBatch) -> torch.Tensor:
        ids = super().store(namespace, select(chunks, slice(0, 0)))
        for row in range(len(chunks)):
            ids = torch.cat((ids, super().store(namespace, select(chunks, slice(row, row + 1)))))
        return ids


class EvictsHalfOfWhatItRefuses(ExactBackend):
    def evict(self, namespace: str, ids: torch.Tensor) -> None:
        for id in ids.split(1):
            super().evict(namespace, id)


class KeepsShortPositions(ExactBackend):
    def store(self, namespace: str, chunks: ChunkBatch) -> torch.Tensor:
        return super().store(namespace, attrs.evolve(chunks, starts=chunks.starts.int().long()))


class WorksAfterClose(ExactBackend):
    def close(self) -> None:
        self._namespaces.clear()


class CannotTakeManyWanted(ExactBackend):
    def retrieve(self, namespace: str, queries: torch.Tensor, top_k: int) -> SearchResult:
        if top_k > 2048:
            raise BackendError("top_k is at most 2048")
        return super().retrieve(namespace, queries, top_k)


class Unlocked(ExactBackend):
    """Gives ids and stores in two steps, with nothing to keep another thread from coming between them."""

    def store(self, namespace: str, chunks: ChunkBatch) -> torch.Tensor:
        found = self._namespaces.get(namespace)
        first = found.table._next_id if found else 0
        time.sleep(0)  # another thread's turn
        super().store(namespace, chunks)
        return torch.arange(first, first + len(chunks))


class TestExact(OnExact):
    pass


class TestLosesABit(OnExact):
    kind = LosesABit


class TestSwapsThereAndBack(OnExact):
    kind = SwapsThereAndBack


class TestReusesIds(OnExact):
    kind = ReusesIds


class TestLeaksNamespaces(OnExact):
    kind = LeaksNamespaces


class TestAliasesTensors(OnExact):
    kind = AliasesTensors


class TestScoresByTheFirstVector(OnExact):
    kind = ScoresByTheFirstVector


class TestFindsTheEvicted(OnExact):
    kind = FindsTheEvicted


class TestStoresHalfOfWhatItRefuses(OnExact):
    kind = StoresHalfOfWhatItRefuses


class TestEvictsHalfOfWhatItRefuses(OnExact):
    kind = EvictsHalfOfWhatItRefuses


class TestKeepsShortPositions(OnExact):
    kind = KeepsShortPositions


class TestWorksAfterClose(OnExact):
    kind = WorksAfterClose


class TestCannotTakeManyWanted(OnExact):
    kind = CannotTakeManyWanted


class TestUnlocked(OnExact):
    kind = Unlocked
