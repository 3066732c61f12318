"""Bad input: refused with an error of memcore, and nothing stored changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from memcore.chunk import NO_CHUNK
from memcore.errors import (
    BackendError,
    ChunkShapeError,
    ClosedError,
    MemcoreError,
    UnknownChunkError,
    UnknownNamespaceError,
)
from memcore.testing.case import BackendCase
from memcore.testing.chunks import make_chunks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from memcore.backend import MemoryBackend


class BadInputTests(BackendCase):
    """What cannot be done is refused, and changes nothing."""

    def test_missing_namespaces_and_ids_are_named(self, backend: MemoryBackend) -> None:
        ids = backend.store("a", make_chunks(2))
        missing = int(ids[-1]) + 34
        wanted = torch.tensor([int(ids[0]), missing])
        for call in (backend.fetch, backend.evict):
            with pytest.raises(UnknownNamespaceError, match="nowhere"):
                call("nowhere", ids)
            with pytest.raises(UnknownChunkError, match=str(missing)):
                call("a", wanted)
        assert torch.equal(backend.ids("a"), ids)

    @pytest.mark.parametrize(
        "changed",
        [{"vectors": 3}, {"size": 6}, {"heads": 1}, {"key_size": 5}, {"value_size": 5}, {"dtype": torch.float16}],
        ids=lambda changed: next(iter(changed)),
    )
    def test_chunks_of_other_shapes_are_refused_and_change_nothing(self, backend: MemoryBackend, changed: Any) -> None:
        chunks = make_chunks(2)
        ids = backend.store("a", chunks)
        with pytest.raises(ChunkShapeError):
            backend.store("a", make_chunks(1, **changed))
        assert torch.equal(backend.ids("a"), ids)
        self.assert_same(backend.fetch("a", ids), chunks)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_embeddings_and_queries_must_be_finite(self, backend: MemoryBackend, bad: float) -> None:
        chunks = make_chunks(2)
        chunks.embeddings[1, 0, 2] = bad
        with pytest.raises(BackendError, match="finite"):
            backend.store("a", chunks)
        assert backend.count("a") == 0
        backend.store("a", make_chunks(2))
        with pytest.raises(BackendError, match="finite"):
            backend.retrieve("a", torch.full((1, 5), bad), 1)

    @pytest.mark.parametrize(
        "queries",
        [torch.zeros(1, 6), torch.zeros(5), torch.zeros(1, 5, dtype=torch.float64)],
        ids=["E", "ndim", "dtype"],
    )
    def test_queries_that_do_not_fit_are_refused(self, backend: MemoryBackend, queries: torch.Tensor) -> None:
        backend.store("a", make_chunks(2))
        with pytest.raises(ChunkShapeError, match="queries"):
            backend.retrieve("a", queries, 1)

    def test_top_k_must_be_positive(self, backend: MemoryBackend) -> None:
        backend.store("a", make_chunks(2))
        with pytest.raises(MemcoreError, match="top_k") as error:
            backend.retrieve("a", torch.zeros(1, 5), 0)
        assert isinstance(error.value, ValueError)

    def test_nothing_works_after_close(self, tmp_path: Path) -> None:
        backend = self.open(tmp_path)
        ids = backend.store("a", make_chunks(1))
        backend.close()
        backend.close()
        calls: list[Callable[[], object]] = [
            lambda: backend.store("a", make_chunks(1)),
            lambda: backend.retrieve("a", torch.zeros(1, 5), 1),
            lambda: backend.fetch("a", ids),
            lambda: backend.evict("a", ids),
            lambda: backend.drop("a"),
            lambda: backend.ids("a"),
            lambda: backend.count("a"),
            lambda: backend.namespaces(),
            lambda: backend.nbytes(),
            lambda: backend.copy("a", "b"),
        ]
        for call in calls:
            with pytest.raises(ClosedError):
                call()

    def test_a_bad_embedding_among_good_ones_stores_none(self, backend: MemoryBackend) -> None:
        ids = backend.store("a", make_chunks(2))
        chunks = make_chunks(50)
        chunks.embeddings[-1, -1, -1] = float("nan")
        with pytest.raises(BackendError):
            backend.store("a", chunks)
        assert torch.equal(backend.ids("a"), ids)
        assert "b" not in backend.namespaces()
        with pytest.raises(BackendError):
            backend.store("b", chunks)
        assert backend.count("b") == 0
        found = backend.retrieve("a", torch.zeros(1, 5), 5).ids[0].tolist()
        assert sorted(found) == [NO_CHUNK] * 3 + ids.tolist()

    def test_an_unknown_id_among_known_ones_evicts_none(self, backend: MemoryBackend) -> None:
        chunks = make_chunks(3)
        ids = backend.store("a", chunks)
        for unknown in (-1, int(ids[-1]) + 1, 2**40, -(2**63)):
            with pytest.raises(UnknownChunkError, match=str(unknown)):
                backend.evict("a", torch.tensor([*ids.tolist(), unknown]))
            with pytest.raises(UnknownChunkError, match=str(unknown)):
                backend.fetch("a", torch.tensor([int(ids[0]), unknown]))
        self.assert_same(backend.fetch("a", ids), chunks)

    def test_an_id_given_twice_is_evicted_once_or_refused(self, backend: MemoryBackend) -> None:
        ids = backend.store("a", make_chunks(3))
        try:
            backend.evict("a", ids[[1, 1]])
        except BackendError:
            assert torch.equal(backend.ids("a"), ids)
        else:
            assert torch.equal(backend.ids("a"), ids[[0, 2]])

    @pytest.mark.parametrize(
        "wrong",
        [torch.tensor([0.0]), torch.tensor([0], dtype=torch.int32), torch.tensor([[0]]), torch.tensor(0)],
        ids=["floats", "int32", "2-D", "0-D"],
    )
    def test_ids_must_be_a_row_of_integers(self, backend: MemoryBackend, wrong: torch.Tensor) -> None:
        backend.store("a", make_chunks(2))
        for call in (backend.fetch, backend.evict):
            with pytest.raises(BackendError):
                call("a", wrong)
        assert backend.count("a") == 2

    def test_a_failed_first_store_fixes_no_shapes(self, backend: MemoryBackend) -> None:
        chunks = make_chunks(2, size=9, heads=1)
        chunks.embeddings[0, 0, 0] = float("inf")
        with pytest.raises(BackendError):
            backend.store("a", chunks)
        chunks = make_chunks(2)
        self.assert_same(backend.fetch("a", backend.store("a", chunks)), chunks)
