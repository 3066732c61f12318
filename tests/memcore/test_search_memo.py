"""A query that was searched for last time is not searched for again, and finds what it would."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from memcore.bank import MemoryBank
from memcore.chunk import ChunkBatch, SearchResult
from memcore.eviction_policies import FifoEviction
from memcore.exact_backend import ExactBackend, ExactOptions
from memcore.search_memo import SearchMemo
from memcore.testing import make_chunks, random_queries

CHUNKS, SIZE, TOP_K = 300, 128, 8
QUERIES = random_queries(40, size=SIZE)
VECTORS = random_queries(50, size=SIZE, seed=1)
ENOUGH = 32  # queries of this size and so many chunks are worth remembering


class Watched(ExactBackend):
    """Counts the queries that it is asked."""

    def __init__(self) -> None:
        super().__init__(ExactOptions())
        self.asked = 0

    def retrieve(self, namespace: str, queries: Tensor, top_k: int) -> SearchResult:
        self.asked += len(queries)
        return super().retrieve(namespace, queries, top_k)


@pytest.fixture
def backend() -> Watched:
    return Watched()


@pytest.fixture
def bank(backend: Watched) -> MemoryBank:
    bank = MemoryBank(backend, FifoEviction(), capacity=None)
    bank.store("a", chunks(CHUNKS))
    return bank


def chunks(count: int, seed: int = 0) -> ChunkBatch:
    return make_chunks(count, seed=seed, size=SIZE)


def retrieve(bank: MemoryBank, queries: Tensor, name: str = "a") -> list[int]:
    retrieved = bank.retrieve(name, queries, TOP_K)
    assert retrieved is not None
    ids: list[int] = retrieved.ids.tolist()
    return ids


def test_only_new_queries_are_searched_for(bank: MemoryBank, backend: Watched) -> None:
    for first in range(0, 8, 2):
        fresh = MemoryBank(ExactBackend(ExactOptions()), FifoEviction(), capacity=None)
        fresh.store("a", chunks(CHUNKS))
        queries = QUERIES[first : first + ENOUGH]
        assert retrieve(bank, queries) == retrieve(fresh, queries)
    assert backend.asked == ENOUGH + 3 * 2


@pytest.mark.parametrize(
    "change",
    [
        lambda bank: bank.store("a", chunks(1, seed=1)),
        lambda bank: bank.truncate("a", CHUNKS - 1),
        lambda bank: bank.fork("empty", "a") or bank.store("a", chunks(CHUNKS, seed=1)),
        lambda bank: bank.fork("b", "a"),
    ],
    ids=["store", "truncate", "replace", "fork"],
)
def test_among_other_chunks_all_are_searched_for(
    bank: MemoryBank, backend: Watched, change: Callable[[MemoryBank], object]
) -> None:
    bank.store("b", chunks(CHUNKS, seed=2))
    retrieve(bank, QUERIES[:ENOUGH])
    change(bank)
    backend.asked = 0
    retrieve(bank, QUERIES[:ENOUGH])
    assert backend.asked == ENOUGH


def test_a_fork_finds_what_it_has_and_its_source_what_that_has(bank: MemoryBank) -> None:
    queries = QUERIES[:ENOUGH]
    before = retrieve(bank, queries)
    bank.fork("a", "~fork")
    wanted = make_chunks(1, size=SIZE)
    wanted.embeddings[:] = 100 * queries[0]
    (new,) = bank.store("a", wanted).tolist()
    assert retrieve(bank, queries, "~fork") == before
    assert new in retrieve(bank, queries)
    assert retrieve(bank, queries, "~fork") == before


def test_what_a_hook_does_to_a_result_changes_no_later_one() -> None:
    def search(queries: Tensor, top_k: int) -> SearchResult:
        scores, ids = (queries @ QUERIES[:20].T).topk(top_k)
        return SearchResult(ids=ids, scores=scores)

    memo = SearchMemo()
    first = memo.search(QUERIES, TOP_K, 10_000, search)
    first.ids.zero_()
    assert torch.equal(memo.search(QUERIES, TOP_K, 10_000, search).ids, search(QUERIES, TOP_K).ids)


@pytest.mark.parametrize("size", [SIZE, SIZE - 1], ids=["even", "odd"])
def test_any_queries_in_any_order_find_what_they_would_alone(size: int) -> None:
    asked, every, vectors = 0, QUERIES[:, :size], VECTORS[:, :size]

    def search(queries: Tensor, top_k: int) -> SearchResult:
        nonlocal asked
        asked += len(queries)
        scores, ids = (queries[:, None] * vectors).sum(dim=2).topk(top_k)  # of each query by itself, to the last bit
        return SearchResult(ids=ids, scores=scores)

    memo, memo_k, choice = SearchMemo(), 0, torch.Generator().manual_seed(0)
    before: set[int] = set()
    expected = 0
    for _ in range(100):
        rows = torch.randint(0, len(QUERIES), (int(torch.randint(1, 50, (), generator=choice)),), generator=choice)
        top_k = 8 if torch.rand((), generator=choice) < 0.8 else 9
        result = memo.search(every[rows], top_k, 1 << 20, search)
        direct = search(every[rows], top_k)
        asked -= len(rows)
        assert torch.equal(result.ids, direct.ids)
        assert torch.equal(result.scores, direct.scores)
        if memo_k != top_k:
            before = set()
        expected += sum(row not in before for row in rows.tolist())
        before, memo_k = set(rows.tolist()), top_k
    assert asked == expected


def test_queries_may_lie_anywhere(backend: Watched, bank: MemoryBank) -> None:
    room = torch.zeros(ENOUGH * SIZE + 1)
    anywhere = room[1:].view(ENOUGH, SIZE)
    anywhere[:] = QUERIES[:ENOUGH]
    assert retrieve(bank, anywhere) == retrieve(bank, QUERIES[:ENOUGH].T.contiguous().T)
    assert backend.asked == ENOUGH


def test_of_few_chunks_nothing_is_remembered(backend: Watched) -> None:
    bank = MemoryBank(backend, FifoEviction(), capacity=None)
    bank.store("a", chunks(20))
    for _ in range(2):
        retrieve(bank, QUERIES)
    assert backend.asked == 2 * len(QUERIES)
