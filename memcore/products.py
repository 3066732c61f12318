"""Inner products of queries with every vector of every chunk, of which the best of each chunk counts."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor

_BLOCK: Final = 1 << 20
"""Products held at a time: 4 MB, which stays in the cache, so it is also the fastest."""

_WORTH_A_LOOK: Final = 1 << 24
"""Multiplications from which on it pays to find out which of them are by zero."""

Part = tuple[slice, slice]
"""Neighbouring queries, and the columns outside of which all of them are zero."""


def full_precision(kind: str) -> AbstractContextManager[Any]:
    """Return a context in which autocast does not compute products in half precision.

    To turn it off where it is not on is dear for short searches.

    Args:
        kind: of the device they are computed on, such as ``"cpu"``.
    """
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


class BestProducts:
    """The largest product of each query with any vector of each chunk, in full precision.

    Queries of a layer with several key/value heads are zero but in the slot of their own head
    (:func:`memcore.embedders.query_in_own_slot`). Of such queries only the columns that are not zero are multiplied:
    with 8 key/value heads, an eighth of the work.

    Args:
        queries: ``[Q, E]`` float32, at least one.
        vectors: how many vectors there will be, about; for few it does not pay to look for zeros.
    """

    def __init__(self, queries: Tensor, vectors: int) -> None:
        self._queries = queries
        self._count = queries.shape[0]  # quicker than len()
        self._parts: list[Part] = []
        if self._count > 1 and queries.numel() * vectors >= _WORTH_A_LOOK:
            self._parts = worthwhile_parts(queries)

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return ``[Q, n]`` float32.

        Args:
            vectors: ``[n, V, E]`` float32 on the queries' device.
        """
        with full_precision(vectors.device.type):
            chunks, per_chunk = vectors.shape[:2]
            step = max(1, _BLOCK // (self._count * per_chunk))
            if step >= chunks and not self._parts:
                return _best(vectors, self._queries)
            scores = self._queries.new_empty(self._count, chunks)
            for first in range(0, chunks, step):
                block = vectors[first : first + step]
                for rows, columns in self._parts or [(slice(None), slice(None))]:
                    scores[rows, first : first + step] = _best(block[..., columns], self._queries[rows, columns])
            return scores


def worthwhile_parts(queries: Tensor) -> list[Part]:
    """Return :func:`nonzero_parts` of queries, ``[Q, E]``, if those are half of the numbers at most; else nothing."""
    if 2 * int(queries.count_nonzero()) > queries.numel():
        return []
    parts = nonzero_parts(queries)
    return parts if 2 * sum(map(area, parts)) <= queries.numel() else []


def nonzero_parts(queries: Tensor) -> list[Part]:
    """Divide queries into runs whose columns overlap from each one to the next.

    Args:
        queries: ``[Q, E]``, at least one.

    Returns:
        Parts that hold every query once and every number that is not zero.
    """
    there = queries != 0
    size = queries.shape[1]
    first = there.to(torch.uint8).argmax(dim=1)
    last = size - there.flip(1).to(torch.uint8).argmax(dim=1)
    last = torch.where(there.any(dim=1), last, first)  # of a query that is all zero there is nothing
    parts: list[Part] = []
    before = (0, 0)
    for row, (begin, end) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        if parts and begin < before[1] and end > before[0]:
            rows, columns = parts[-1]
            parts[-1] = (slice(rows.start, row + 1), slice(min(columns.start, begin), max(columns.stop, end)))
        else:
            parts.append((slice(row, row + 1), slice(begin, end)))
        before = (begin, end)
    return parts


def area(part: Part) -> int:
    """Return how many numbers a part has."""
    rows, columns = part
    return len(range(rows.start, rows.stop)) * len(range(columns.start, columns.stop))


def _best(vectors: Tensor, queries: Tensor) -> Tensor:
    products = queries @ vectors.flatten(0, 1).T
    return products if vectors.shape[1] == 1 else products.view(len(queries), *vectors.shape[:2]).amax(dim=2)
