from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Self

import attrs
import pytest
import torch

from memcore.approximate_index import ApproximateIndex, Found, VectorIndex, first_distinct, score_chunks
from memcore.chunk_table import ChunkTable
from memcore.exact_backend import exact_search
from memcore.in_memory import InMemoryBackend, SearchIndex
from memcore.testing import BackendTests, make_chunks

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from memcore.chunk import ChunkBatch


class Ledger(VectorIndex):
    """Compares all vectors and keeps a record of how often it was built.

    Attributes:
        reach: of every query, no more than so many are found.
        rough: whether products are kept back.
        surplus: how many times more than it has to a rough one finds.
        keeps_dead: whether removed vectors go on taking room.
    """

    def __init__(self, *, rough: bool = False, keeps_dead: bool = False) -> None:
        self.rough = rough
        self.keeps_dead = keeps_dead
        self.reach = 10**6
        self.surplus = 2
        self.starts = 0
        self.blocks: list[int] = []
        self.refuses = False
        self.vectors = torch.empty(0, 0)
        self.labels = torch.empty(0, dtype=torch.int64)
        self.removed = 0

    @property
    def dead(self) -> int:
        return self.removed if self.keeps_dead else 0

    def start(self, size: int, count: int, sample: Tensor) -> None:
        self.clear()
        self.vectors = torch.empty(0, size)
        self.starts += 1
        self.sample = sample

    def add(self, vectors: Tensor, labels: Tensor) -> None:
        assert vectors.is_contiguous()
        assert not self.labels.numel() or int(labels[0]) > int(self.labels[-1])
        self.vectors = torch.cat((self.vectors, vectors))
        self.labels = torch.cat((self.labels, labels))
        self.blocks.append(len(labels))

    def remove(self, labels: Tensor) -> None:
        if self.refuses:
            raise RuntimeError("no")
        keep = ~torch.isin(self.labels, labels)
        assert int((~keep).sum()) == len(labels)
        self.vectors, self.labels = self.vectors[keep], self.labels[keep]
        self.removed += len(labels)

    def find(self, queries: Tensor, count: int) -> Found | None:
        if self.refuses:
            return None
        assert count < len(self.labels)
        count = min(self.surplus * count, len(self.labels)) if self.rough else count
        with torch.autocast("cpu", enabled=False):
            best = (queries @ self.vectors.T).topk(count, dim=1)
        labels, products = self.labels[best.indices], best.values
        labels[:, self.reach :] = -1
        return Found(labels=labels, products=None if self.rough else products)

    def clear(self) -> None:
        self.vectors = torch.empty(0, 0)
        self.labels = torch.empty(0, dtype=torch.int64)
        self.removed = 0

    def copy(self) -> Self:
        twin = type(self)(rough=self.rough, keeps_dead=self.keeps_dead)
        twin.vectors, twin.labels, twin.removed = self.vectors, self.labels, self.removed
        return twin

    def sample_size(self, count: int) -> int:
        return 20


class LedgerBackend(InMemoryBackend):
    def new_index(self) -> SearchIndex:
        return ApproximateIndex(Ledger(keeps_dead=True), exact_below=0)


class TestContract(BackendTests):
    def open(self, path: Path) -> LedgerBackend:
        return LedgerBackend(LedgerBackend.Options())


QUERIES = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))


def filled(count: int = 50, *, offset: float = 0.0, vectors: int = 2) -> ChunkTable:
    table = ChunkTable()
    table.add(some(count, offset=offset, vectors=vectors))
    return table


def some(count: int, *, offset: float = 0.0, vectors: int = 2, seed: int = 0) -> ChunkBatch:
    chunks = make_chunks(count, vectors=vectors, seed=seed)
    return attrs.evolve(chunks, embeddings=chunks.embeddings + offset)


def assert_searches_exactly(index: ApproximateIndex, table: ChunkTable, top_k: int = 6) -> None:
    got, want = index.search(table, QUERIES, top_k), exact_search(table, QUERIES, top_k)
    assert torch.equal(got.ids, want.ids)
    torch.testing.assert_close(got.scores, want.scores, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_an_index_that_finds_the_best_gives_the_best(rough: bool, vectors: int, offset: float) -> None:
    table = filled(offset=offset, vectors=vectors)
    assert_searches_exactly(ApproximateIndex(Ledger(rough=rough), exact_below=0), table)


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("rough", [False, True])
def test_queries_for_which_too_few_are_found_are_compared_with_all(vectors: int, rough: bool) -> None:
    table = filled(vectors=vectors)
    ledger = Ledger(rough=rough)
    ledger.reach = 3
    assert_searches_exactly(ApproximateIndex(ledger, exact_below=0), table)


@pytest.mark.parametrize("vectors", [1, 2, 8])
@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_a_rough_index_need_not_find_more_than_it_has_to(vectors: int, top_k: int) -> None:
    ledger, table = Ledger(rough=True), filled(vectors=vectors)
    ledger.surplus = 1
    found = ApproximateIndex(ledger, exact_below=0).search(table, QUERIES, top_k)
    assert found.ids.equal(exact_search(table, QUERIES, top_k).ids)


def test_an_index_that_cannot_search_is_done_without() -> None:
    ledger = Ledger()
    ledger.refuses = True
    assert_searches_exactly(ApproximateIndex(ledger, exact_below=0), filled())


def test_a_large_offset_is_taken_off_and_a_small_one_is_not() -> None:
    far, near = Ledger(), Ledger()
    ApproximateIndex(far, exact_below=0).search(filled(offset=30.0), QUERIES, 3)
    ApproximateIndex(near, exact_below=0).search(filled(offset=0.1), QUERIES, 3)
    assert float(far.vectors.mean().abs()) < 1e-3
    assert torch.equal(near.vectors, filled(offset=0.1).embeddings.flatten(0, 1))


def test_the_sample_is_of_the_vectors_that_are_added() -> None:
    ledger = Ledger()
    ApproximateIndex(ledger, exact_below=0).search(filled(offset=30.0), QUERIES, 3)
    distances = torch.cdist(ledger.sample, ledger.vectors).amin(dim=1)
    assert ledger.sample.shape == (20, 5)
    assert float(distances.max()) < 1e-3


def test_few_vectors_need_no_index() -> None:
    ledger = Ledger()
    index = ApproximateIndex(ledger, exact_below=100)
    assert_searches_exactly(index, filled(50))
    assert ledger.starts == 0
    assert_searches_exactly(index, filled(51))
    assert ledger.starts == 1


def test_only_what_is_new_is_added() -> None:
    ledger, table = Ledger(), filled(50)
    index = ApproximateIndex(ledger, exact_below=0)
    index.search(table, QUERIES, 3)
    table.add(some(4, seed=1))
    index.removed(table.remove(torch.tensor([7, 51])))
    table.add(some(2, seed=2))
    assert_searches_exactly(index, table)
    index.search(table, QUERIES, 3)
    assert ledger.blocks == [100, 10]
    assert ledger.starts == 1


def test_a_mean_that_moves_while_chunks_come_and_go_starts_all_anew() -> None:
    ledger, table = Ledger(), filled(40)
    index = ApproximateIndex(ledger, exact_below=0)
    for step in range(6):
        index.search(table, QUERIES, 3)
        table.add(some(10, seed=step, offset=30.0))
        index.removed(table.remove(table.ids[:10]))
    assert_searches_exactly(index, table)
    assert ledger.starts == 3  # when half of them are new, and when all are
    assert float(ledger.vectors.mean().abs()) < 10


def test_a_mean_that_stays_starts_nothing_anew() -> None:
    ledger, table = Ledger(), filled(40)
    index = ApproximateIndex(ledger, exact_below=0)
    for step in range(6):
        index.search(table, QUERIES, 3)
        table.add(some(10 * 2**step, seed=step))
    assert_searches_exactly(index, table)
    assert ledger.starts == 1


def test_an_index_with_more_dead_than_alive_is_built_anew() -> None:
    ledger, table = Ledger(keeps_dead=True), filled(50)
    index = ApproximateIndex(ledger, exact_below=0)
    index.search(table, QUERIES, 3)
    index.removed(table.remove(table.ids[:25]))
    index.search(table, QUERIES, 3)
    assert ledger.starts == 1
    index.removed(table.remove(table.ids[:1]))
    assert ledger.labels.numel() == 0
    assert_searches_exactly(index, table)
    assert ledger.starts == 2


def test_an_index_that_fails_to_remove_is_built_anew(caplog: pytest.LogCaptureFixture) -> None:
    ledger, table = Ledger(), filled(50)
    index = ApproximateIndex(ledger, exact_below=0)
    index.search(table, QUERIES, 3)
    ledger.refuses = True
    index.removed(table.remove(table.ids[:5]))
    assert "could not remove 10 vectors" in caplog.text
    ledger.refuses = False
    assert_searches_exactly(index, table)
    assert ledger.starts == 2


def test_what_becomes_of_an_index_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    ledger, table = Ledger(), filled(50)
    index = ApproximateIndex(ledger, exact_below=0)
    with caplog.at_level(logging.DEBUG, logger="memcore.index"):
        index.search(table, QUERIES, 3)
        table.add(some(5, seed=1))
        index.search(table, QUERIES, 3)
        table.add(some(100, seed=2, offset=30.0))
        index.search(table, QUERIES, 3)
        ledger.reach = 1
        index.search(table, QUERIES, 3)
    assert caplog.messages == [
        "a search index of 100 vectors was built: there was none",
        "10 vectors came to a search index, which has 110",
        "a search index of 310 vectors was built: the mean of the vectors has moved",
        f"{len(QUERIES)} queries were compared with all vectors: the index found too few",
    ]


def test_an_index_interrupted_while_it_is_built_is_built_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, table = Ledger(), filled(50)
    index = ApproximateIndex(ledger, exact_below=0)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    index.search(table, QUERIES, 3)
    table.add(some(5, seed=1))
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "add", interrupt)
        with pytest.raises(KeyboardInterrupt):
            index.search(table, QUERIES, 3)
    assert_searches_exactly(index, table)
    assert ledger.starts == 2


def test_a_copy_goes_its_own_way() -> None:
    table = filled(50)
    index = ApproximateIndex(Ledger(), exact_below=0)
    index.search(table, QUERIES, 3)
    twin, other = index.copy(), table.copy()
    index.removed(table.remove(table.ids[:10]))
    other.add(some(3, seed=4))
    assert_searches_exactly(twin, other)
    assert_searches_exactly(index, table)


def test_first_distinct_keeps_the_order_and_fills_up() -> None:
    ids = torch.tensor([[3, 3, 1, 3, 2], [5, 5, 5, -1, -1], [4, 9, 4, 9, 9]])
    assert first_distinct(ids, 3).tolist() == [[3, 1, 2], [5, -1, -1], [4, 9, -1]]


def test_scores_are_those_of_the_best_vectors_and_none_has_none() -> None:
    table = filled(10, vectors=3)
    result = score_chunks(table, QUERIES, torch.tensor([[4, -1, 2]] * 4))
    products = torch.einsum("kve,qe->qkv", table.embeddings[torch.tensor([2, 4])], QUERIES).amax(dim=2)
    torch.testing.assert_close(result.scores[:, :2], products.sort(dim=1, descending=True).values)
    assert result.ids[:, 2].tolist() == [-1] * 4
    assert bool((result.scores[:, 2] == -torch.inf).all())
