"""How many lists of an inverted file to search: as few as find what they should, tried out on the vectors at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_COUNT: Final = 8
"""Vectors to be found per query while it is tried out."""

_TOLERANCE: Final = 1e-5
"""By which two products that should be equal may differ, relative to the largest."""


def choose_probes(search: Callable[[int, int], Tensor], most: int, recall: float, *, own: bool) -> int:
    """Return the smallest number of lists, of those tried, with which enough is found.

    Args:
        search: takes a number of lists to search and one of vectors ``k``, and returns the products of what it finds
            for some queries, ``[Q, k]``, best first.
        most: lists that can be searched, which should be all.
        recall: share of the best vectors to be found, above 0 and below 1.
        own: whether the queries are themselves among the vectors. These find themselves, which does not count.
    """
    extra = int(own)
    best = search(most, _COUNT + extra)
    least = best[:, -1:] - _TOLERANCE * best.abs().amax(dim=1, keepdim=True)
    probes = 1
    while probes < most:
        hits = (search(probes, _COUNT + extra) >= least).sum(dim=1).float()
        if float((hits - extra).mean()) >= recall * _COUNT:
            break
        # A step of about a third: between two powers of two, half of the work could be for nothing.
        probes = max(probes + 1, probes * 4 // 3)
    return min(probes, most)
