from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import pytest
import torch
from int8_tolerance import Int8Tests

from memcore.approximate_index import ApproximateIndex
from memcore.exact_backend import ExactBackend, ExactOptions
from memcore.testing import BackendTests, assert_same_chunks, make_chunks, select

pytest.importorskip("hnswlib")

from memcore_hnswlib.backend import HnswlibBackend
from memcore_hnswlib.graph import HnswlibVectors
from memcore_hnswlib.options import HnswlibOptions
from memcore_hnswlib.plugin import memcore_backends

if TYPE_CHECKING:
    from pathlib import Path

    from memcore.chunk import ChunkBatch


class TestContract(BackendTests):
    def open(self, path: Path) -> HnswlibBackend:
        return HnswlibBackend(HnswlibOptions())


class TestContractOfTheGraph(BackendTests):
    exact = False

    def open(self, path: Path) -> HnswlibBackend:
        return HnswlibBackend(HnswlibOptions(exact_below=0))


class TestContractOfInt8(Int8Tests):
    exact = False

    def open(self, path: Path) -> HnswlibBackend:
        return HnswlibBackend(HnswlibOptions(exact_below=0, compression="int8"))


def large(count: int = 2000, *, offset: float = 0.0, seed: int = 0, vectors: int = 4) -> ChunkBatch:
    chunks = make_chunks(count, seed=seed, vectors=vectors, size=64, heads=1, width=1, key_size=1, value_size=1)
    direction = torch.randn(64, generator=torch.Generator().manual_seed(99))
    return attrs.evolve(chunks, embeddings=chunks.embeddings + offset * direction)


QUERIES = torch.randn(64, 64, generator=torch.Generator().manual_seed(7))


def recall(backend: HnswlibBackend, chunks: ChunkBatch, ids: torch.Tensor) -> float:
    """Return the share of the eight best chunks that the backend finds; ``ids`` are those of ``chunks``."""
    exact = ExactBackend(ExactOptions())
    own = exact.store("a", chunks)
    assert own.tolist() == list(range(len(chunks)))
    want = ids[exact.retrieve("a", QUERIES, 8).ids]
    got = backend.retrieve("a", QUERIES, 8).ids
    return float((got[:, :, None] == want[:, None, :]).any(dim=2).float().mean())


def graph_of(backend: HnswlibBackend) -> HnswlibVectors:
    """Return the graph of namespace ``a``, brought up to date."""
    backend.retrieve("a", QUERIES[:1], 1)
    index = backend._namespaces["a"].index
    assert isinstance(index, ApproximateIndex)
    assert isinstance(index.vectors, HnswlibVectors)
    return index.vectors


@pytest.fixture
def graph() -> HnswlibBackend:
    return HnswlibBackend(HnswlibOptions(exact_below=0))


@pytest.mark.parametrize("offset", [0.0, 10.0], ids=["centred", "with a large common offset"])
def test_finds_what_exact_search_finds(graph: HnswlibBackend, offset: float) -> None:
    chunks = large(offset=offset)
    assert recall(graph, chunks, graph.store("a", chunks)) >= 0.95


def test_finds_it_when_the_offset_comes_later(graph: HnswlibBackend) -> None:
    first, second = large(100, seed=1), large(1900, seed=2, offset=10.0)
    others = graph.store("a", first)
    graph.retrieve("a", QUERIES, 8)
    ids = graph.store("a", second)
    graph.retrieve("a", QUERIES, 8)
    graph.evict("a", others)
    assert recall(graph, second, ids) >= 0.95


def test_finds_it_after_growth_and_evictions(graph: HnswlibBackend) -> None:
    everything, ids = large(0), torch.empty(0, dtype=torch.int64)
    generator = torch.Generator().manual_seed(3)
    for step in range(8):
        batch = large(80, seed=step)
        everything, ids = join(everything, batch), torch.cat((ids, graph.store("a", batch)))
        graph.retrieve("a", QUERIES, 8)
        keep = torch.rand(len(ids), generator=generator) > 0.2
        graph.evict("a", ids[~keep])
        everything, ids = select(everything, keep), ids[keep]
    assert recall(graph, everything, ids) >= 0.95


def test_a_copy_searches_as_well_and_apart(graph: HnswlibBackend) -> None:
    chunks = large(400)
    ids = graph.store("a", chunks)
    before = graph.retrieve("a", QUERIES, 8)
    graph.copy("a", "b")
    graph.evict("a", ids[:100])
    after = graph.retrieve("b", QUERIES, 8)
    assert torch.equal(before.ids, after.ids)
    assert not bool((graph.retrieve("a", QUERIES, 8).ids < 100).any())


def test_the_same_calls_give_the_same_answers() -> None:
    answers = []
    for _ in range(2):
        backend = HnswlibBackend(HnswlibOptions(exact_below=0, seed=5))
        backend.store("a", large(300))
        answers.append(backend.retrieve("a", QUERIES, 8).ids)
    assert torch.equal(*answers)


def test_equal_vectors_are_all_found(graph: HnswlibBackend) -> None:
    chunks = large(200)
    same = attrs.evolve(chunks, embeddings=torch.ones_like(chunks.embeddings))
    graph.store("a", same)
    result = graph.retrieve("a", torch.ones(2, 64), 40)
    assert all(len(set(ids)) == 40 for ids in result.ids.tolist())
    assert bool((result.scores == 64).all())


def test_a_graph_that_has_fallen_apart_is_not_asked_twice(
    graph: HnswlibBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = large(100)
    ids = graph.store("a", chunks)
    vectors = graph_of(graph)
    asked: list[object] = []

    class Apart:
        def set_ef(self, ef: int) -> None:
            pass

        def knn_query(self, _: object, count: object, **kwargs: object) -> None:
            asked.append(count)
            raise RuntimeError("Cannot return the results in a contiguous 2D array. Probably ef or M is too small")

    with monkeypatch.context() as context:
        context.setattr(vectors, "_graph", Apart())
        for _ in range(3):
            assert recall(graph, chunks, ids) == 1.0
        assert len(asked) == 1
    graph.evict("a", ids[:1])  # the graph has changed, so it is asked again
    monkeypatch.setattr(vectors, "_graph", Apart())
    assert recall(graph, select(chunks, slice(1, None)), ids[1:]) == 1.0
    assert len(asked) == 2


def test_new_vectors_take_the_places_of_removed_ones(graph: HnswlibBackend) -> None:
    everything = large(80)
    ids = graph.store("a", everything)
    vectors = graph_of(graph)
    size = vectors._graph.get_current_count()
    for step in range(1, 9):  # twice as many as there are
        batch = large(20, seed=step)
        graph.evict("a", ids[:20])
        ids = torch.cat((ids[20:], graph.store("a", batch)))
        everything = join(select(everything, slice(20, None)), batch)
        assert recall(graph, everything, ids) >= 0.95
        assert graph_of(graph) is vectors
        assert vectors._graph.get_current_count() == vectors._graph.get_max_elements() == size
        assert vectors.dead == 0


def test_a_graph_of_mostly_removed_vectors_is_built_anew(graph: HnswlibBackend) -> None:
    chunks = large(300)
    ids = graph.store("a", chunks)
    graph_of(graph)
    graph.evict("a", ids[:200])
    assert recall(graph, select(chunks, slice(200, None)), ids[200:]) >= 0.95
    assert graph_of(graph)._graph.get_current_count() == 100 * 4


def test_several_threads_find_as_much() -> None:
    backend = HnswlibBackend(HnswlibOptions(exact_below=0, threads=2))
    chunks = large()
    assert recall(backend, chunks, backend.store("a", chunks)) >= 0.95


def test_options_reach_the_graph() -> None:
    backend = HnswlibBackend(HnswlibOptions(exact_below=0, M=5, ef_construction=33, ef=44))
    backend.store("a", large(50))
    built = graph_of(backend)._graph
    assert (built.M, built.ef_construction, built.ef) == (5, 33, 44)


def test_few_vectors_are_searched_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = HnswlibBackend(HnswlibOptions(exact_below=400))
    monkeypatch.setattr(HnswlibVectors, "start", lambda *_: pytest.fail("a graph was built"))
    chunks = large(100)
    assert recall(backend, chunks, backend.store("a", chunks)) == 1.0


def test_payloads_are_kept(graph: HnswlibBackend) -> None:
    chunks = large(300)
    ids = graph.store("a", chunks)
    found = graph.retrieve("a", QUERIES[:1], 8).ids[0]
    assert_same_chunks(graph.fetch("a", found), select(chunks, torch.searchsorted(ids, found)))


@pytest.mark.parametrize(
    "options",
    [
        {"M": 1},
        {"ef_construction": 0},
        {"ef": 0},
        {"seed": -1},
        {"threads": 0},
        {"exact_below": -1},
        {"M": "16"},
        {"compression": "int4"},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match=next(iter(options))):
        HnswlibOptions(**options)


def test_the_plugin_offers_the_backend() -> None:
    (component,) = memcore_backends()
    assert component.name == "hnswlib"
    assert component.load() is HnswlibBackend


def join(first: ChunkBatch, second: ChunkBatch) -> ChunkBatch:
    values = attrs.asdict(second, recurse=False)
    return type(first)(
        **{name: torch.cat((value, values[name])) for name, value in attrs.asdict(first, recurse=False).items()}
    )
