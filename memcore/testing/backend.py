"""What every memory backend must do. A backend's test class inherits this and says how to open one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from memcore.backend import PersistentBackend
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
from memcore.testing.chunks import DTYPES, make_chunks, select
from memcore.testing.machine import BackendMachine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from memcore.backend import MemoryBackend


class BackendTests(BackendCase):
    """Tests that a backend inherits: give ``open`` and, unless it is an in-memory backend, ``raw_payload``."""

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_fetch_gives_back_every_bit(self, backend: MemoryBackend, dtype: torch.dtype) -> None:
        chunks = make_chunks(5, dtype=dtype)
        ids = backend.store("a", chunks)
        self.assert_same(backend.fetch("a", ids), chunks)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_chunks_lie_where_they_are_kept_as_they_were(self, backend: MemoryBackend, dtype: torch.dtype) -> None:
        chunks = make_chunks(5, dtype=dtype)
        ids = backend.store("a", chunks)
        if isinstance(backend, PersistentBackend):
            backend.flush()
        for row, (id, length) in enumerate(zip(ids.tolist(), chunks.lengths.tolist(), strict=True)):
            keys, values = (tensor.cpu() for tensor in self.raw_payload(backend, "a", id))
            want = select(chunks, slice(row, row + 1))
            assert keys.shape == (2, length, 4)
            assert values.shape == (2, length, 3)
            kept = attrs.evolve(want, keys=keys[None], values=values[None], token_ids=want.token_ids[:, :length])
            self.assert_same(kept, want)

    def test_fetch_keeps_order_and_repeats(self, backend: MemoryBackend) -> None:
        chunks = make_chunks(4)
        ids = backend.store("a", chunks)
        places = torch.tensor([3, 0, 3, 1])
        self.assert_same(backend.fetch("a", ids[places]), select(chunks, places))

    def test_fetch_of_no_ids_has_the_shapes_of_the_namespace(self, backend: MemoryBackend) -> None:
        backend.store("a", make_chunks(2))
        none = backend.fetch("a", torch.empty(0, dtype=torch.int64))
        assert len(none) == 0
        assert none.embeddings.shape[1:] == (2, 5)
        assert (none.keys.shape[1], none.keys.shape[3], none.values.shape[3]) == (2, 4, 3)

    def test_chunks_of_other_lengths_join(self, backend: MemoryBackend) -> None:
        batches = [make_chunks(2, width=width, seed=width) for width in (3, 5, 2)]
        ids = [backend.store("a", batch) for batch in batches]
        for own, batch in zip(ids, batches, strict=True):
            self.assert_same(backend.fetch("a", own), batch)

    def test_ids_grow_and_are_never_used_again(self, backend: MemoryBackend) -> None:
        first = backend.store("a", make_chunks(3))
        backend.evict("a", first[1:])
        second = backend.store("a", make_chunks(2, seed=1))
        everything = torch.cat((first, second))
        assert everything.dtype == torch.int64
        assert bool((everything.diff() > 0).all())
        assert int(first[0]) >= 0
        assert backend.ids("a").tolist() == [int(first[0]), *second.tolist()]

    def test_stored_chunks_do_not_alias_what_was_given_or_fetched(self, backend: MemoryBackend) -> None:
        chunks = make_chunks(2)
        want = select(chunks, slice(None))
        want = attrs.evolve(want, keys=want.keys.clone(), embeddings=want.embeddings.clone())
        ids = backend.store("a", chunks)
        chunks.keys.zero_()
        chunks.embeddings.zero_()
        backend.fetch("a", ids).keys.zero_()
        backend.ids("a").fill_(7)
        ids_again = backend.ids("a")
        assert torch.equal(ids_again, ids)
        self.assert_same(backend.fetch("a", ids), want)

    def test_a_chunk_scores_by_its_best_vector(self, backend: MemoryBackend) -> None:
        chunks = make_chunks(3, vectors=2, size=2)
        vectors = torch.tensor([[[1.0, 0.0], [0.0, 3.0]], [[2.0, 0.0], [0.0, 1.0]], [[-9.0, 0.0], [0.0, 2.0]]])
        ids = backend.store("a", attrs.evolve(chunks, embeddings=vectors))
        result = backend.retrieve("a", torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 2)
        assert result.ids.tolist() == [[int(ids[1]), int(ids[0])], [int(ids[0]), int(ids[2])]]
        assert result.scores.tolist() == [[2.0, 1.0], [3.0, 2.0]]

    def test_more_than_there_are_is_filled_with_no_chunk(self, backend: MemoryBackend) -> None:
        ids = backend.store("a", make_chunks(2))
        result = backend.retrieve("a", torch.randn(3, 5), 4)
        assert result.ids.shape == result.scores.shape == (3, 4)
        assert result.ids[:, :2].sort().values.tolist() == [ids.tolist()] * 3
        assert result.ids[:, 2:].tolist() == [[NO_CHUNK] * 2] * 3
        assert bool((result.scores[:, 2:] == -torch.inf).all())
        assert result.ids.dtype == torch.int64
        assert result.scores.dtype == torch.float32

    def test_unknown_and_emptied_namespaces_yield_nothing(self, backend: MemoryBackend) -> None:
        backend.evict("a", backend.store("a", make_chunks(2)))
        for namespace in ("a", "unknown"):
            result = backend.retrieve(namespace, torch.randn(2, 5), 3)
            assert result.ids.tolist() == [[NO_CHUNK] * 3] * 2
            assert backend.count(namespace) == 0
            assert backend.ids(namespace).tolist() == []
            assert backend.ids(namespace).dtype == torch.int64

    def test_namespaces_are_apart(self, backend: MemoryBackend) -> None:
        one, two = make_chunks(3, seed=1), make_chunks(2, seed=2, size=7, dtype=torch.bfloat16)
        ids = backend.store("one", one)
        other = backend.store("two", two)
        assert backend.namespaces() == ["one", "two"]
        backend.evict("two", other[:1])
        self.assert_same(backend.fetch("one", ids), one)
        self.assert_same(backend.fetch("two", other[1:]), select(two, slice(1, None)))
        backend.drop("one")
        assert backend.namespaces() == ["two"]
        assert backend.count("one") == 0
        assert backend.count("two") == 1

    def test_a_dropped_namespace_may_begin_again_with_other_shapes(self, backend: MemoryBackend) -> None:
        backend.store("a", make_chunks(2))
        backend.drop("a")
        backend.drop("a")
        chunks = make_chunks(2, vectors=1, size=3, heads=1, dtype=torch.float16)
        self.assert_same(backend.fetch("a", backend.store("a", chunks)), chunks)

    def test_a_copy_is_alike_and_apart(self, backend: MemoryBackend) -> None:
        chunks = make_chunks(4)
        ids = backend.store("a", chunks)
        backend.evict("a", ids[:1])
        backend.store("b", make_chunks(1, size=9))
        backend.copy("a", "b")
        backend.evict("a", ids[1:2])
        backend.store("a", make_chunks(1, seed=5))
        copied = backend.ids("b")
        self.assert_same(backend.fetch("b", copied), select(chunks, slice(1, None)))
        assert int(backend.store("b", make_chunks(1))[0]) > int(copied[-1])

    def test_a_copy_of_nothing_is_nothing(self, backend: MemoryBackend) -> None:
        backend.store("b", make_chunks(1))
        backend.copy("unknown", "b")
        assert backend.count("b") == 0

    def test_bytes_are_counted_at_least_for_what_is_stored(self, backend: MemoryBackend) -> None:
        chunks = make_chunks(8, width=16, key_size=16, value_size=16, heads=4)
        chunks = attrs.evolve(chunks, lengths=torch.full((8,), 16))  # padding may or may not be kept
        payload = chunks.keys.nbytes + chunks.values.nbytes + chunks.embeddings.nbytes
        assert backend.nbytes() == 0
        assert backend.nbytes("a") == 0
        backend.store("a", chunks)
        backend.store("b", chunks)
        assert backend.nbytes("a") >= payload
        assert backend.nbytes() == backend.nbytes("a") + backend.nbytes("b")
        backend.drop("a")
        assert backend.nbytes() == backend.nbytes("b")

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

    def test_no_queries_find_nothing(self, backend: MemoryBackend) -> None:
        backend.store("a", make_chunks(2))
        assert backend.retrieve("a", torch.zeros(0, 5), 2).ids.shape == (0, 2)

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

    @pytest.mark.parametrize("first", [True, False], ids=["inference first", "inference last"])
    def test_inference_mode_and_training_mix(self, backend: MemoryBackend, first: bool) -> None:
        with torch.inference_mode(first):
            ids = backend.store("a", make_chunks(5))
            backend.evict("a", ids[1:3])  # makes room that is written to later
        with torch.inference_mode(not first):
            later = make_chunks(1, seed=3)
            backend.evict("a", backend.store("a", later))
            backend.retrieve("a", torch.zeros(1, 5), 1)
        weight = torch.ones(1, requires_grad=True)
        loss = (backend.fetch("a", backend.ids("a")).keys * weight).sum()
        (gradient,) = torch.autograd.grad(loss, weight)
        assert float(gradient) != 0

    def test_gradients_are_not_kept(self, backend: MemoryBackend) -> None:
        chunks = make_chunks(2)
        traced = attrs.evolve(chunks, keys=chunks.keys.requires_grad_(), embeddings=chunks.embeddings.requires_grad_())
        fetched = backend.fetch("a", backend.store("a", traced))
        found = backend.retrieve("a", torch.zeros(1, 5, requires_grad=True), 1)
        assert not any(tensor.requires_grad for tensor in (fetched.keys, fetched.embeddings, found.scores))

    def test_autocast_does_not_blur_scores(self, backend: MemoryBackend) -> None:
        chunks = make_chunks(40, size=16)
        backend.store("a", chunks)
        queries = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = backend.retrieve("a", queries, 1)
        exact = (queries @ chunks.embeddings.flatten(0, 1).T).amax(dim=1, keepdim=True)
        torch.testing.assert_close(result.scores, exact)

    def test_any_sequence_of_calls_agrees_with_a_dictionary(self, tmp_path: Path) -> None:
        runs = iter(range(10**6))

        def start() -> RuleBasedStateMachine:
            folder = tmp_path / str(next(runs))
            folder.mkdir()
            return BackendMachine(self.open(folder), exact=self.exact, assert_same=self.assert_same)

        run_state_machine_as_test(
            start,  # type: ignore[arg-type]  # it takes any callable
            settings=settings(
                max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
