"""Best products: those of plain matrix multiplication, with what is multiplied by zero left out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from memcore import products
from memcore.embedder import RecentQueries
from memcore.embedders import query_in_own_slot
from memcore.products import BestProducts, nonzero_parts

SIZES = st.integers(1, 7)


def queries_of_heads(kv_heads: int, group: int, tokens: int, dim: int) -> Tensor:
    shape = (kv_heads * group, tokens, dim)
    queries = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return query_in_own_slot(RecentQueries(queries=queries, kv_heads=kv_heads, token_ids=torch.zeros(tokens).long()))


@given(st.data(), SIZES, SIZES, st.floats(0, 1))
def test_parts_hold_every_query_once_and_all_that_is_not_zero(
    data: st.DataObject, count: int, size: int, share: float
) -> None:
    seed = data.draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(count, size, generator=generator) * (torch.rand(count, size, generator=generator) < share)
    left = queries.clone()
    rows: list[int] = []
    for part in nonzero_parts(queries):
        rows += range(count)[part[0]]
        left[part] = 0
    assert rows == list(range(count))
    assert not left.any()


@pytest.mark.parametrize(("kv_heads", "group", "tokens", "dim"), [(1, 4, 3, 5), (2, 1, 1, 4), (3, 2, 4, 8)])
def test_a_head_is_compared_in_its_own_slot_only(kv_heads: int, group: int, tokens: int, dim: int) -> None:
    parts = nonzero_parts(queries_of_heads(kv_heads, group, tokens, dim))
    rows = group * tokens
    assert parts == [
        (slice(head * rows, (head + 1) * rows), slice(head * dim, (head + 1) * dim)) for head in range(kv_heads)
    ]


@pytest.mark.parametrize("vectors", [1, 4])
@pytest.mark.parametrize("kv_heads", [1, 2, 8])
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_the_best_products_are_those_of_the_whole_matrices(
    vectors: int, kv_heads: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_WORTH_A_LOOK", 0)
    monkeypatch.setattr(products, "_BLOCK", block)
    queries = queries_of_heads(kv_heads, 2, 3, 16)
    queries[1] = 0
    chunks = torch.randn(9, vectors, kv_heads * 16, generator=torch.Generator().manual_seed(1))
    expected = torch.einsum("qe,nve->qnv", queries.double(), chunks.double()).amax(dim=2)
    torch.testing.assert_close(BestProducts(queries, 9 * vectors)(chunks).double(), expected, rtol=1e-5, atol=1e-5)
