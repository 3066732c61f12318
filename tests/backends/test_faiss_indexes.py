from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch

from memcore.errors import BackendError
from memcore.testing import assert_same_chunks, make_chunks

pytest.importorskip("faiss")

import faiss
from memcore_faiss.backend import FaissBackend
from memcore_faiss.cagra_index import GraphWithTail
from memcore_faiss.destruction import destroyed_within
from memcore_faiss.effort import Effort
from memcore_faiss.engine import CpuEngine
from memcore_faiss.hnsw_index import HnswIndex
from memcore_faiss.installation import installation
from memcore_faiss.ivf_index import IvfIndex, IvfSettings
from memcore_faiss.options import FaissOptions
from memcore_faiss.tombstones import Tombstones

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from memcore.approximate_index import VectorIndex

_faiss: Any = faiss  # its own types do not know all of it

SIZE = 16


def vectors(count: int, *, seed: int = 0, size: int = SIZE) -> Tensor:
    """Return vectors around forty points."""
    centres = torch.randn(40, size, generator=torch.Generator().manual_seed(97))
    generator = torch.Generator().manual_seed(seed)
    around = centres[torch.randint(40, (count,), generator=generator)]
    return around + 0.3 * torch.randn(count, size, generator=generator)


def fill(index: VectorIndex, some: Tensor, first: int = 0) -> Tensor:
    """Add vectors to an index, starting it with label 0, and return their labels."""
    if not first:
        index.start(some.shape[1], len(some), some[: index.sample_size(len(some))])
    labels = torch.arange(first, first + len(some))
    index.add(some, labels)
    return labels


def recall(index: VectorIndex, held: Tensor, labels: Tensor, queries: Tensor) -> float:
    want = labels[(queries @ held.T).topk(8, dim=1).indices]
    found = index.find(queries, 8)
    assert found is not None
    return float((found.labels[:, :, None] == want[:, None, :]).any(dim=2).float().mean())


SETTINGS: dict[str, Any] = {
    "lists": None,
    "probes": None,
    "recall": 0.98,
    "train_size": None,
    "compressed": False,
    "code_bytes": None,
    "seed": 0,
}


def ivf(**changes: Any) -> IvfIndex:
    return IvfIndex(CpuEngine(1), IvfSettings(**{**SETTINGS, **changes}))


@pytest.mark.parametrize("few", [0, 1 << 23], ids=["a product for each list", "one search"])
@pytest.mark.parametrize("changes", [{}, {"lists": 90}, {"compressed": True}], ids=str)
def test_the_best_products_of_an_inverted_file_are_those_of_all_that_it_holds(
    changes: dict[str, Any], few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memcore_faiss.engine._FEW", few)
    index, held = ivf(**changes), vectors(300)
    index.remove(fill(index, held)[:50])
    queries, engine = vectors(5, seed=1), CpuEngine(1)
    want = (queries @ held[50:].T).topk(250, dim=1).values
    got = engine.best_products(index._index, queries, 250)
    if index._settings.compressed:  # as far as it knows them: by what a search of all lists finds
        assert bool(((got - want).abs().mean() < 0.1 * want.abs().mean()).all())
    else:
        torch.testing.assert_close(got, want)
        more = engine.best_products(index._index, queries, 252)
        assert torch.equal(more[:, :250], got)
        assert bool((more[:, 250:] == torch.finfo(torch.float32).min).all())


class CopyingEngine(CpuEngine):
    """Places an index as on a GPU: as a copy, without the parameters of its clustering."""

    def place(self, index: Any) -> Any:
        placed: Any = faiss.clone_index(index)
        placed.cp = faiss.ClusteringParameters()
        return placed


def hnsw(ef: int | None = None) -> HnswIndex:
    return HnswIndex(CpuEngine(1), links=16, ef_construction=100, ef=ef, recall=0.98, seed=0)


QUERIES = vectors(50, seed=5)


class TestIvf:
    def test_searches_few_lists_where_vectors_lie_in_groups_and_more_where_they_do_not(self) -> None:
        probes = []
        for some in (vectors(2000), torch.randn(2000, SIZE, generator=torch.Generator().manual_seed(1))):
            index = ivf()
            labels = fill(index, some)
            assert recall(index, some, labels, some[:50]) >= 0.95
            assert index.probes is not None
            probes.append(index.probes)
        assert probes[0] <= 15
        assert probes[1] >= 1.5 * probes[0]

    def test_first_queries_unlike_the_vectors_are_answered_as_well(self) -> None:
        some, queries = vectors(2000), torch.randn(50, SIZE, generator=torch.Generator().manual_seed(2))
        index = ivf()
        assert recall(index, some, fill(index, some), queries) >= 0.95

    def test_tries_out_again_what_to_search_when_half_has_changed(self) -> None:
        some = vectors(2000)
        index = ivf()
        labels = fill(index, some)
        index.find(QUERIES, 8)
        before = index.probes
        # Only vectors of half of the directions stay, so the best are no longer in the nearest lists.
        gone = some[:, 0] > 0
        index.remove(labels[gone])
        assert recall(index, some[~gone], labels[~gone], QUERIES) >= 0.95
        assert before is not None
        assert index.probes is not None
        assert index.probes > before

    def test_is_outgrown_by_four_times_as_many_vectors(self) -> None:
        index = ivf()
        fill(index, vectors(200))
        assert not index.outgrown(799)
        assert index.outgrown(800)

    def test_is_outgrown_when_vectors_were_replaced_thrice(self) -> None:
        index = ivf()
        labels = fill(index, vectors(200))
        for step in range(1, 4):
            index.remove(labels)
            assert not index.outgrown(0)
            labels = fill(index, vectors(200, seed=step), first=200 * step)
        assert index.outgrown(200)

    def test_follows_the_number_of_lists_and_probes_asked_for(self) -> None:
        index = ivf(lists=10, probes=3)
        fill(index, vectors(300))
        index.find(QUERIES, 8)
        assert index.probes == 3
        assert index._index.nlist == 10
        assert index._index.nprobe == 3

    def test_looks_at_no_more_lists_than_there_are(self) -> None:
        index = ivf(lists=10, probes=50)
        fill(index, vectors(300))
        index.find(QUERIES, 8)
        assert index._index.nprobe == 10

    def test_trains_with_the_seed_asked_for_wherever_it_is(self) -> None:
        index = IvfIndex(CopyingEngine(1), IvfSettings(**{**SETTINGS, "seed": 5}))
        fill(index, vectors(300))
        assert index._index.cp.seed == 5
        assert index._index.cp.min_points_per_centroid == 1

    def test_trains_on_no_more_than_it_is_to(self) -> None:
        assert ivf(train_size=500).sample_size(10**6) == 500
        assert ivf().sample_size(10**6) == 50 * 2000
        assert ivf(compressed=True, train_size=10).sample_size(10**6) == 256

    def test_removes_for_good(self) -> None:
        index, some = ivf(), vectors(500)
        labels = fill(index, some)
        index.remove(labels[::2])
        assert index._index.ntotal == 250
        assert index.dead == 0

    def test_too_few_vectors_to_compress_are_left_to_comparison(self) -> None:
        index = ivf(compressed=True)
        fill(index, vectors(255))
        assert index.find(QUERIES, 8) is None
        assert not index.outgrown(255)
        assert index.outgrown(256)

    def test_compressed_vectors_take_fewer_bytes(self) -> None:
        index = ivf(compressed=True)
        fill(index, vectors(400))
        assert index._index.code_size == SIZE // 4

    def test_bytes_that_do_not_divide_the_size_are_refused(self) -> None:
        with pytest.raises(BackendError, match="pq_m must divide the 16 numbers"):
            fill(ivf(compressed=True, code_bytes=5), vectors(400))


class TestEffort:
    @staticmethod
    def exact(queries: Tensor, count: int) -> Tensor:
        return torch.linspace(1, 0.5, 16)[:count].repeat(len(queries), 1)

    def test_is_the_first_that_finds_enough(self) -> None:
        asked = []

        def search(effort: int, queries: Tensor, count: int) -> Tensor:
            asked.append(effort)
            found = self.exact(queries, count)
            return found if effort >= 7 else found.masked_fill(torch.arange(count) >= effort, -1.0)

        effort = Effort(fixed=None, recall=0.9)
        effort.start(QUERIES)
        assert effort.choose(search, self.exact, QUERIES, 100) == 8
        assert asked == 2 * [1, 2, 4, 8, 6]
        assert effort.choose(search, self.exact, QUERIES, 5) == 5

    def test_what_a_stored_vector_finds_of_itself_does_not_count(self) -> None:
        def search(effort: int, queries: Tensor, count: int) -> Tensor:
            found = self.exact(queries, count)
            return found if effort >= 3 else found.masked_fill(torch.arange(count) >= 1, -1.0)

        effort = Effort(fixed=None, recall=0.1)
        effort.start(QUERIES)
        assert effort.choose(search, self.exact, QUERIES, 100) == 3  # between 2 and 4

    def test_is_chosen_again_when_half_has_changed(self) -> None:
        effort = Effort(fixed=None, recall=0.9)
        effort.start(QUERIES)
        assert effort.is_due(100)
        effort.choose(lambda _, queries, count: self.exact(queries, count), self.exact, QUERIES, 100)
        effort.change(50)
        assert not effort.is_due(100)
        effort.change(1)
        assert effort.is_due(100)

    def test_that_is_given_is_kept(self) -> None:
        effort = Effort(fixed=5, recall=0.9)
        effort.start(QUERIES)
        assert effort.choose(lambda *_: pytest.fail("it was tried out"), self.exact, QUERIES, 100) == 5
        effort.change(1000)
        assert not effort.is_due(100)

    def test_that_is_given_is_kept_by_a_small_index(self) -> None:
        effort = Effort(fixed=50, recall=0.9)
        effort.start(QUERIES)
        effort.choose(lambda *_: pytest.fail("it was tried out"), self.exact, QUERIES, 10)
        assert effort.value == 50


class TestTombstones:
    @staticmethod
    def search(count: int) -> tuple[Tensor, Tensor]:
        """Find 0, 1, 2 and so on, ten in all."""
        labels = torch.arange(count).masked_fill(torch.arange(count) >= 10, -1)
        return -torch.arange(count).float()[None], labels[None]

    def test_passes_over_what_was_removed(self) -> None:
        stones = Tombstones()
        stones.add(torch.tensor([0, 1, 2, 4]))
        found = stones.find(self.search, 3, 10)
        assert found is not None
        assert found.labels.tolist() == [[3, 5, 6]]
        assert found.products is not None
        assert found.products.tolist() == [[-3, -5, -6]]

    def test_fills_up_when_too_few_are_left(self) -> None:
        stones = Tombstones()
        stones.add(torch.arange(8))
        found = stones.find(self.search, 4, 10)
        assert found is not None
        assert found.labels.tolist() == [[8, 9, -1, -1]]

    def test_does_not_search_for_more_than_can_be(self) -> None:
        assert Tombstones().find(self.search, 11, 10) is None


class TestHnsw:
    def test_finds_as_well_with_half_of_it_under_tombstones(self) -> None:
        index, some = hnsw(), vectors(1000)
        labels = fill(index, some)
        index.remove(labels[::2])
        assert index.dead == 500
        assert recall(index, some[1::2], labels[1::2], QUERIES) >= 0.95

    def test_considers_more_where_vectors_do_not_lie_in_groups(self) -> None:
        efs = []
        generator = torch.Generator().manual_seed(1)
        for some in (vectors(2050, size=64), torch.randn(2050, 64, generator=generator)):
            index = hnsw()
            labels = fill(index, some[50:])
            assert recall(index, some[50:], labels, some[:50]) >= 0.95
            assert index.ef is not None
            efs.append(index.ef)
        assert efs[1] > efs[0]

    def test_considers_as_many_as_asked_for_once_there_are_so_many(self) -> None:
        index, some = hnsw(ef=200), vectors(1000)
        fill(index, some[:100])
        index.find(QUERIES, 8)
        assert index._index.hnsw.efSearch == 100
        fill(index, some[100:], first=100)
        index.find(QUERIES, 8)
        assert index._index.hnsw.efSearch == index.ef == 200

    def test_labels_need_not_be_places(self) -> None:
        index, some = hnsw(), vectors(300)
        index.start(SIZE, 300, some[:0])
        labels = torch.arange(300) * 3 + 5
        index.add(some, labels)
        assert recall(index, some, labels, QUERIES) >= 0.95


class CpuGraphWithTail(GraphWithTail):
    """What CAGRA does on a GPU, with another graph on the CPU."""

    graphs = 0

    def new_graph(self, vectors: Tensor) -> Any:
        self.graphs += 1
        graph = faiss.IndexHNSWFlat(vectors.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
        self.engine.add(graph, vectors)
        return graph

    def own(self, vectors: Tensor) -> Tensor:
        return vectors.clone()


class TestGraphWithTail:
    def test_compares_what_came_after_the_graph_was_made(self) -> None:
        index, some = CpuGraphWithTail(CpuEngine(1)), vectors(1500)
        labels = fill(index, some[:1200])
        assert recall(index, some[:1200], labels, QUERIES) >= 0.95
        labels = torch.cat((labels, fill(index, some[1200:], first=1200)))
        index.remove(labels[100:200])
        keep = (labels < 100) | (labels >= 200)
        assert recall(index, some[keep], labels[keep], QUERIES) >= 0.95
        assert index.graphs == 1

    def test_makes_a_new_graph_when_a_quarter_came_later(self) -> None:
        index, some = CpuGraphWithTail(CpuEngine(1)), vectors(1700)
        labels = fill(index, some[:1200])
        index.find(QUERIES, 8)
        labels = torch.cat((labels, fill(index, some[1200:], first=1200)))
        assert recall(index, some, labels, QUERIES) >= 0.95
        assert index.graphs == 2

    def test_few_vectors_need_no_graph(self) -> None:
        index, some = CpuGraphWithTail(CpuEngine(1)), vectors(300)
        assert recall(index, some, fill(index, some), QUERIES) == 1.0
        assert index.graphs == 0

    def test_a_copy_goes_its_own_way(self) -> None:
        index, some = CpuGraphWithTail(CpuEngine(1)), vectors(1300)
        labels = fill(index, some)
        index.find(QUERIES, 8)
        twin = index.copy()
        index.remove(labels[:600])
        assert recall(twin, some, labels, QUERIES) >= 0.95
        assert recall(index, some[600:], labels[600:], QUERIES) >= 0.95


class TestDestruction:
    def test_is_in_its_context_once_nothing_refers_to_it(self) -> None:
        class Written:
            """What an object in C++ refers to for as long as it is there."""

            def __call__(self, content: bytes) -> int:
                return len(content)

        steps: list[str] = []

        @contextmanager
        def context() -> Iterator[None]:
            steps.append("begin")
            yield
            steps.append("end")

        written = Written()
        weakref.finalize(written, steps.append, "destroyed")
        writer = destroyed_within(context, _faiss.PyCallbackIOWriter(written))
        del written
        another = writer
        del writer
        gc.collect()
        assert steps == []
        del another
        gc.collect()
        assert steps == ["begin", "destroyed", "end"]


def gpu(index: str) -> FaissBackend:
    """Return a backend on the first GPU that always asks its index, or skip the test and say why."""
    if not installation().gpus or not torch.cuda.is_available():
        pytest.skip(f"no GPU that faiss and torch can use: {installation()}, torch {torch.__version__}")
    if index == "cagra" and not installation().has_cagra:
        pytest.skip(f"CAGRA needs a faiss built with cuVS: {installation()}")
    return FaissBackend(FaissOptions(index=index, device="cuda:0", exact_below=0))  # type: ignore[arg-type]


@pytest.mark.parametrize("index", ["flat", "ivf", "ivfpq", "cagra"])
class TestOnGpu:
    def test_finds_and_forgets(self, index: str) -> None:
        backend = gpu(index)
        chunks = make_chunks(3000, vectors=1, size=64, heads=1, width=1)
        ids = backend.store("a", chunks)
        queries = torch.randn(20, 64, generator=torch.Generator().manual_seed(1))
        for _ in range(2):
            held = chunks.embeddings[ids, 0]
            want = ids[(queries @ held.T).topk(8, dim=1).indices]
            got = backend.retrieve("a", queries, 8).ids
            assert float((got[:, :, None] == want[:, None, :]).any(dim=2).float().mean()) >= 0.9
            backend.evict("a", want.unique())
            ids = backend.ids("a")

    def test_adds_and_copies(self, index: str) -> None:
        backend = gpu(index)
        chunks = make_chunks(2000, vectors=1, size=64, heads=1, width=1)
        backend.store("a", chunks)
        backend.retrieve("a", torch.zeros(1, 64), 1)
        later = make_chunks(1, seed=1, vectors=1, size=64, heads=1, width=1)
        backend.copy("a", "b")
        ids = backend.store("b", later)
        assert backend.retrieve("b", 10 * later.embeddings[:, 0], 1).ids.tolist() == [ids.tolist()]
        assert_same_chunks(backend.fetch("b", ids), later)

    def test_is_dropped_while_another_thread_searches(self, index: str) -> None:
        searched, dropped = gpu(index), gpu(index)
        chunks = make_chunks(2000, vectors=1, size=64, heads=1, width=1)
        searched.store("a", chunks)
        queries = torch.randn(20, 64, generator=torch.Generator().manual_seed(1))
        want = searched.retrieve("a", queries, 8).ids
        stop = threading.Event()

        def search() -> bool:
            same = True
            while not stop.is_set():
                same = same and torch.equal(searched.retrieve("a", queries, 8).ids, want)
            return same

        with ThreadPoolExecutor(1) as pool:
            searching = pool.submit(search)
            try:
                for _ in range(5):
                    dropped.store("a", chunks)
                    dropped.retrieve("a", queries, 8)
                    dropped.drop("a")
            finally:
                stop.set()
            assert searching.result()

    def test_resources_are_shared(self, index: str) -> None:
        first, second = gpu(index), gpu(index)
        assert first._gpu_engine is not None
        assert second._gpu_engine is not None
        assert first._gpu_engine.shared is second._gpu_engine.shared


def test_resources_of_a_gpu_are_made_once_and_their_memory_grows() -> None:
    if not installation().has_gpu:
        pytest.skip(f"needs a faiss with GPU support: {installation()}")
    code = """
from memcore_faiss.gpu_engine import shared_on
first = shared_on(0, 100)
for asked, kept in ((50, 100), (200, 200)):
    assert shared_on(0, asked) is first
    assert first.temp_memory == kept
assert shared_on(1, 10).resources is not first.resources
"""
    # In a process of its own: importing the module changes faiss's classes.
    subprocess.run([sys.executable, "-c", code], check=True)
