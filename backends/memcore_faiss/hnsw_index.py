"""Graphs on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self

import faiss

from memcore_faiss.effort import TRIED, Effort
from memcore_faiss.positional_index import PositionalIndex

if TYPE_CHECKING:
    from torch import Tensor

    from memcore.approximate_index import Found
    from memcore_faiss.engine import Engine

_faiss: Any = faiss  # its own types do not know all of it

_LEAST: Final = 32
"""Neighbours considered in any search."""

_MOST: Final = 8192
"""Neighbours considered in a search when that is tried out; with more, comparing all is faster."""


class HnswIndex(PositionalIndex):
    """A graph.

    Args:
        engine: a :class:`memcore_faiss.engine.CpuEngine`.
        links: per vector.
        ef_construction: neighbours considered when a vector is added.
        ef: neighbours considered in a search, at least; None tries out how many it takes.
        recall: share of the best vectors that ``ef`` is to find when it is tried out.
        seed: of the graph's random levels.
    """

    def __init__(
        self, engine: Engine, *, links: int, ef_construction: int, ef: int | None, recall: float, seed: int
    ) -> None:
        self._links = links
        self._ef_construction = ef_construction
        self._seed = seed
        self._ef = Effort(fixed=ef, recall=recall, least=_LEAST)
        super().__init__(engine)

    @property
    def ef(self) -> int | None:
        """Neighbours considered in a search, where there are so many; None before the first one."""
        return self._ef.value

    def sample_size(self, count: int) -> int:
        """Return how many vectors ``ef`` is tried out on."""
        return TRIED

    def start(self, size: int, count: int, sample: Tensor) -> None:
        """Begin anew."""
        super().start(size, count, sample)
        self._ef.start(sample)

    def new_index(self, size: int) -> Any:
        """Return an empty graph."""
        index: Any = faiss.IndexHNSWFlat(size, self._links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = self._ef_construction
        index.hnsw.rng = _faiss.RandomGenerator(self._seed)
        return self.engine.place(index)

    def add(self, vectors: Tensor, labels: Tensor) -> None:
        """Add vectors to the graph."""
        super().add(vectors, labels)
        self._ef.change(len(labels))

    def remove(self, labels: Tensor) -> None:
        """Put vectors under tombstones."""
        super().remove(labels)
        self._ef.change(len(labels))

    def find(self, queries: Tensor, count: int) -> Found | None:
        """Search the graph."""
        if self._ef.is_due(int(self._index.ntotal) - self.dead):
            self._choose_ef(queries)
        return super().find(queries, count)

    def find_places(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Search the graph, vectors under tombstones included."""
        self._index.hnsw.efSearch = max(min(self._ef.value or _LEAST, int(self._index.ntotal)), count)
        return super().find_places(queries, count)

    def copy(self) -> Self:
        """Return a graph that can be changed apart from this one."""
        twin = super().copy()
        twin._ef = self._ef.copy()
        return twin

    def _choose_ef(self, queries: Tensor) -> None:
        every = faiss.downcast_index(self._index.storage)

        def search(ef: int, some: Tensor, count: int) -> Tensor:
            self._index.hnsw.efSearch = ef
            return self.engine.search(self._index, some, count)[0]

        def exact(some: Tensor, count: int) -> Tensor:
            return self.engine.search(every, some, count)[0]

        self._ef.choose(search, exact, queries, min(int(self._index.ntotal), _MOST))
