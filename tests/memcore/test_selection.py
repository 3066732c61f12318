from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from memcore.chunk import NO_CHUNK, SearchResult
from memcore.selection import select_chunks

INFINITY = math.inf


def result(ids: list[list[int]], scores: list[list[float]]) -> SearchResult:
    return SearchResult(ids=torch.tensor(ids), scores=torch.tensor(scores, dtype=torch.float32))


def test_one_query_gets_its_best_chunks_in_order() -> None:
    assert select_chunks(result([[7, 3, 5]], [[3.0, 2.0, 1.0]]), 2).tolist() == [7, 3]


def test_a_sure_query_outvotes_unsure_ones_with_higher_scores() -> None:
    found = result([[1, 2], [3, 4]], [[50.0, 50.0], [5.0, -5.0]])
    assert select_chunks(found, 1).tolist() == [3]


def test_votes_of_several_queries_add_up() -> None:
    found = result([[1, 9], [2, 9], [3, 9]], [[1.0, 0.9]] * 3)
    assert select_chunks(found, 1).tolist() == [9]


def test_equal_votes_go_to_the_lower_id() -> None:
    assert select_chunks(result([[8, 2], [5, 4]], [[1.0, 1.0]] * 2), 3).tolist() == [2, 4, 5]


def test_empty_places_have_no_vote() -> None:
    found = result([[4, NO_CHUNK], [NO_CHUNK, NO_CHUNK]], [[1.0, -INFINITY], [-INFINITY, -INFINITY]])
    assert select_chunks(found, 3).tolist() == [4]


def test_nothing_found_selects_nothing() -> None:
    chosen = select_chunks(result([[NO_CHUNK]], [[-INFINITY]]), 3)
    assert chosen.tolist() == []
    assert chosen.dtype == torch.int64


def test_adding_the_same_to_all_scores_of_a_query_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 20, (6, 4), generator=generator)
    scores = torch.randn(6, 4, generator=generator)
    shifted = scores + 100 * torch.randn(6, 1, generator=generator)
    chosen = select_chunks(SearchResult(ids=ids, scores=scores), 5)
    assert torch.equal(chosen, select_chunks(SearchResult(ids=ids, scores=shifted), 5))


@given(queries=st.integers(1, 5), top_k=st.integers(1, 12), seed=st.integers(0, 1000))
def test_agrees_with_counting_by_hand(queries: int, top_k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(8, generator=generator)[:4] for _ in range(queries)])
    scores = 3 * torch.randn(queries, 4, generator=generator)
    votes = dict.fromkeys(ids.flatten().tolist(), 0.0)
    for row, row_scores in zip(ids.tolist(), scores.double().tolist(), strict=True):
        total = sum(map(math.exp, row_scores))
        for id_, score in zip(row, row_scores, strict=True):
            votes[id_] += math.exp(score) / total
    want = sorted(votes, key=lambda id_: (-votes[id_], id_))[:top_k]
    assert select_chunks(SearchResult(ids=ids, scores=scores), top_k).tolist() == want
