"""Searching: scores, order, and how many."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch

from memcore.chunk import NO_CHUNK
from memcore.testing.case import BackendCase
from memcore.testing.chunks import make_chunks, random_queries

if TYPE_CHECKING:
    from memcore.backend import MemoryBackend


class SearchingTests(BackendCase):
    """The best chunks are found, each with its score."""

    def test_a_chunk_scores_by_its_best_vector(self, backend: MemoryBackend) -> None:
        chunks = make_chunks(3, vectors=2, size=2)
        vectors = torch.tensor([[[1.0, 0.0], [0.0, 3.0]], [[2.0, 0.0], [0.0, 1.0]], [[-9.0, 0.0], [0.0, 2.0]]])
        ids = backend.store("a", attrs.evolve(chunks, embeddings=vectors))
        result = backend.retrieve("a", torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 2)
        assert result.ids.tolist() == [[int(ids[1]), int(ids[0])], [int(ids[0]), int(ids[2])]]
        assert result.scores.tolist() == [[2.0, 1.0], [3.0, 2.0]]

    def test_more_than_there_are_is_filled_with_no_chunk(self, backend: MemoryBackend) -> None:
        ids = backend.store("a", make_chunks(2))
        result = backend.retrieve("a", random_queries(3), 4)
        assert result.ids.shape == result.scores.shape == (3, 4)
        assert result.ids[:, :2].sort().values.tolist() == [ids.tolist()] * 3
        assert result.ids[:, 2:].tolist() == [[NO_CHUNK] * 2] * 3
        assert bool((result.scores[:, 2:] == -torch.inf).all())
        assert result.ids.dtype == torch.int64
        assert result.scores.dtype == torch.float32

    def test_unknown_and_emptied_namespaces_yield_nothing(self, backend: MemoryBackend) -> None:
        backend.evict("a", backend.store("a", make_chunks(2)))
        for namespace in ("a", "unknown"):
            result = backend.retrieve(namespace, random_queries(2), 3)
            assert result.ids.tolist() == [[NO_CHUNK] * 3] * 2
            assert backend.count(namespace) == 0
            assert backend.ids(namespace).tolist() == []
            assert backend.ids(namespace).dtype == torch.int64

    def test_no_queries_find_nothing(self, backend: MemoryBackend) -> None:
        backend.store("a", make_chunks(2))
        assert backend.retrieve("a", torch.zeros(0, 5), 2).ids.shape == (0, 2)

    def test_autocast_does_not_blur_scores(self, backend: MemoryBackend) -> None:
        chunks = make_chunks(40, size=16)
        backend.store("a", chunks)
        queries = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = backend.retrieve("a", queries, 1)
        exact = (queries @ chunks.embeddings.flatten(0, 1).T).amax(dim=1, keepdim=True)
        torch.testing.assert_close(result.scores, exact)

    def test_scores_are_inner_products(self, backend: MemoryBackend) -> None:
        chunks, queries = make_chunks(12), random_queries(3)
        ids = backend.store("a", chunks)
        result = backend.retrieve("a", queries, 12)
        truth = torch.einsum("qe,nve->qnv", queries, chunks.embeddings).amax(dim=2)
        torch.testing.assert_close(result.scores, truth.gather(1, torch.searchsorted(ids, result.ids)))
        assert bool((result.scores.diff(dim=1) <= 0).all())

    def test_many_more_may_be_asked_for_than_there_are(self, backend: MemoryBackend) -> None:
        ids = backend.store("a", make_chunks(3))
        result = backend.retrieve("a", random_queries(2), 50_000)
        assert result.ids.shape == (2, 50_000)
        assert result.ids[:, :3].sort().values.tolist() == [ids.tolist()] * 2
        assert bool((result.ids[:, 3:] == NO_CHUNK).all())

    def test_equal_chunks_are_all_found(self, backend: MemoryBackend) -> None:
        chunks = make_chunks(6)
        ids = backend.store("a", attrs.evolve(chunks, embeddings=torch.ones_like(chunks.embeddings)))
        result = backend.retrieve("a", torch.ones(2, 5), 6)
        assert result.ids.sort().values.tolist() == [ids.tolist()] * 2
        assert bool((result.scores == 5).all())

    def test_what_was_evicted_is_not_found(self, backend: MemoryBackend) -> None:
        ids = backend.store("a", make_chunks(30))
        best = backend.retrieve("a", random_queries(1), 10).ids[0]
        backend.evict("a", best)
        found = backend.retrieve("a", random_queries(1), 30).ids[0]
        assert set(found.tolist()) == (set(ids.tolist()) - set(best.tolist())) | {NO_CHUNK}

    def test_each_query_is_answered_on_its_own(self, backend: MemoryBackend) -> None:
        backend.store("a", make_chunks(30))
        queries = random_queries(6)
        together = backend.retrieve("a", queries, 30)
        for place in range(6):
            alone = backend.retrieve("a", queries[place : place + 1], 30)
            torch.testing.assert_close(alone.scores[0], together.scores[place])

    def test_searching_changes_nothing(self, backend: MemoryBackend) -> None:
        chunks, queries = make_chunks(8), random_queries(3)
        ids = backend.store("a", chunks)
        asked = queries.clone()
        result = backend.retrieve("a", queries, 4)
        result.ids.fill_(0)
        result.scores.fill_(0)
        assert torch.equal(queries, asked)
        self.assert_same(backend.fetch("a", ids), chunks)
        assert bool((backend.retrieve("a", queries, 4).scores != 0).any())

    def test_queries_may_lie_anyhow_in_memory(self, backend: MemoryBackend) -> None:
        backend.store("a", make_chunks(8))
        queries = random_queries(3)
        scattered = queries.T.contiguous().T
        torch.testing.assert_close(backend.retrieve("a", scattered, 8).scores, backend.retrieve("a", queries, 8).scores)
