"""How much of an index a search looks at: as little as finds what it should, tried out on the vectors at hand."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Final, Self, TypeAlias

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

Exact: TypeAlias = "Callable[[Tensor, int], Tensor]"
"""Takes queries ``[Q, E]`` and ``k``; returns the ``k`` largest products of each, ``[Q, k]``, best first."""

Search: TypeAlias = "Callable[[int, Tensor, int], Tensor]"
"""Takes an effort, queries ``[Q, E]`` and ``k``; returns the products of what is found, ``[Q, k]``, best first."""

TRIED: Final = 16
"""Vectors of the index by which an effort is chosen, at most."""

_QUERIES: Final = 32
"""Queries by which it is chosen, at most."""

_COUNT: Final = 8
"""Vectors to be found per query while it is tried out."""

_TOLERANCE: Final = 1e-5
"""By which two products that should be equal may differ, relative to the largest."""


class Effort:
    """The lists or graph nodes that each search of one index considers.

    How many it takes depends on the data by a factor of a hundred, so it is tried out: on vectors of the index, and on
    the first queries, which may be unlike them. This is done again when as many vectors as half of those held have come
    or gone.

    Args:
        fixed: the effort if it is given; None tries it out.
        recall: share of the best vectors that are to be found, above 0 and below 1.
        least: the smallest effort that is tried.
    """

    def __init__(self, *, fixed: int | None, recall: float, least: int = 1) -> None:
        self._fixed = fixed
        self._recall = recall
        self._least = least
        self._sample = torch.empty(0)
        self._changed = 0
        self.value: int | None = None

    def start(self, sample: Tensor) -> None:
        """Begin anew.

        Args:
            sample: ``[n, E]`` float32, vectors of the index.
        """
        self.value = None
        self._sample = sample[torch.linspace(0, len(sample) - 1, min(TRIED, len(sample))).long()].clone()

    def change(self, count: int) -> None:
        """Take note that so many vectors were added or removed."""
        self._changed += count

    def is_due(self, held: int) -> bool:
        """Return whether an effort must be chosen before the next search of ``held`` vectors."""
        return self.value is None or (self._fixed is None and 2 * self._changed > held)

    def choose(self, search: Search, exact: Exact, queries: Tensor, most: int) -> int:
        """Choose an effort for this index and return it.

        Args:
            search: searches the index with an effort.
            exact: finds the very best.
            queries: ``[Q, E]`` float32, the queries at hand.
            most: the largest effort that is tried out. One that is given may be larger, and is for the caller to cut.
        """
        if self._fixed is None:
            queries = queries[:_QUERIES]
            best = exact(torch.cat((self._sample, queries)), _COUNT + 1)  # at once, as it reads the whole index
            own, asked = best.split((len(self._sample), len(queries)))
            self.value = max(
                self._try(search, self._sample, own, most, own=1),
                self._try(search, queries, asked[:, :_COUNT], most, own=0),
            )
        else:
            self.value = self._fixed  # whatever the index holds now: that may be few, and more may come
        self._changed = 0
        return self.value

    def copy(self) -> Self:
        """Return the same effort, to be chosen apart from this one."""
        return copy(self)

    def _try(self, search: Search, queries: Tensor, best: Tensor, most: int, *, own: int) -> int:
        """Return the smallest effort, of those tried, with which enough is found of the best.

        That queries which are vectors of the index themselves find themselves, ``own = 1``, does not count.
        """
        count = _COUNT + own
        least = best[:, -1:] - _TOLERANCE * best.abs().amax(dim=1, keepdim=True)

        def is_enough(effort: int) -> bool:
            hits = (search(effort, queries, count) >= least).sum(dim=1).float()
            return float((hits - own).mean()) >= self._recall * _COUNT

        effort = self._least
        while effort < most and not is_enough(effort):
            effort *= 2
        between = min(effort, most) * 3 // 4
        return between if between > effort // 2 >= self._least and is_enough(between) else min(effort, most)
