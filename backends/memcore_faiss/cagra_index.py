"""CAGRA graphs on a GPU, which are made at once: what comes later is compared until it is worth a new graph."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Final, Self

import torch

from memcore.products import full_precision
from memcore_faiss.positional_index import PositionalIndex

if TYPE_CHECKING:
    from torch import Tensor

    from memcore_faiss.gpu_engine import GpuEngine

_FEWEST: Final = 1024
"""Vectors worth a graph."""

_LATER: Final = 4
"""The graph is made anew when vectors that came later are more than one in so many."""


class GraphWithTail(PositionalIndex):
    """A graph over the vectors that were there when it was made, and a tail of later ones that are all compared.

    A subclass says in ``new_graph`` which graph, and in ``own`` where the vectors are kept for the next one.
    """

    @abstractmethod
    def new_graph(self, vectors: Tensor) -> Any:
        """Return a placed faiss index over ``[n, E]`` vectors."""

    @abstractmethod
    def own(self, vectors: Tensor) -> Tensor:
        """Return a copy of ``[n, E]`` vectors where they are to be kept."""

    def new_index(self, size: int) -> Any:
        """Return no graph, as there is nothing yet to make it from."""
        return None

    def add(self, vectors: Tensor, labels: Tensor) -> None:
        """Add vectors to the tail."""
        self._blocks.append(self.own(vectors))
        self.number(labels)

    def find_places(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Search the graph and the tail, and keep the best of both."""
        tail = self._tail()
        places = torch.arange(self._covered, self._covered + len(tail)).expand(len(queries), -1)
        with full_precision(tail.device.type):
            products = (queries.to(tail.device) @ tail.T).cpu()
        if self._index is not None:
            of_graph, found = self.engine.search(self._index, queries, min(count, self._covered))
            products = torch.cat((of_graph.masked_fill(found < 0, -torch.inf), products), dim=1)
            places = torch.cat((found, places), dim=1)
        best = products.topk(count, dim=1)
        return best.values, places.gather(1, best.indices)

    def clear(self) -> None:
        """Release everything."""
        super().clear()
        self._blocks: list[Tensor] = []
        self._covered = 0  # vectors in the graph: the first ones

    def copy(self) -> Self:
        """Return an index that can be changed apart from this one."""
        twin = super().copy()
        twin._blocks = list(self._blocks)
        return twin

    def copy_index(self) -> Any:
        """Return the graph itself, as it never changes."""
        return self._index

    def _tail(self) -> Tensor:
        """Return the vectors that are not in the graph, having made a new one if they are too many."""
        if len(self._blocks) > 1:
            self._blocks = [torch.cat(self._blocks)]
        (vectors,) = self._blocks
        if len(vectors) >= _FEWEST and _LATER * (len(vectors) - self._covered) > len(vectors):
            self._index = self.new_graph(vectors)
            self._covered = len(vectors)
        return vectors[self._covered :]


class CagraIndex(GraphWithTail):
    """CAGRA on a GPU.

    Args:
        engine: the GPU's.
    """

    def __init__(self, engine: GpuEngine) -> None:
        super().__init__(engine)
        self._gpu = engine

    def new_graph(self, vectors: Tensor) -> Any:
        """Return a CAGRA graph."""
        return self._gpu.cagra(vectors)

    def own(self, vectors: Tensor) -> Tensor:
        """Return the vectors on the GPU."""
        return vectors.to(self._gpu.device, copy=True)
