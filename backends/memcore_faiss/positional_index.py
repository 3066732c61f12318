"""Indexes that number vectors in the order they come and cannot remove any."""

from __future__ import annotations

from abc import abstractmethod
from copy import copy
from typing import TYPE_CHECKING, Any, Self

import faiss
import torch

from memcore.approximate_index import Found, VectorIndex
from memcore_faiss.tombstones import Tombstones

if TYPE_CHECKING:
    from torch import Tensor

    from memcore_faiss.engine import Engine


class PositionalIndex(VectorIndex):
    """Translates places to labels, and keeps tombstones. A subclass says which index it is.

    Args:
        engine: what calls faiss.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._index: Any = None
        self.clear()

    @property
    def dead(self) -> int:
        """Vectors under tombstones."""
        return len(self._tombstones)

    @abstractmethod
    def new_index(self, size: int) -> Any:
        """Return an empty faiss index for vectors of ``size`` numbers, placed."""

    def start(self, size: int, count: int, sample: Tensor) -> None:
        """Begin anew."""
        self.clear()
        self._index = self.new_index(size)

    def add(self, vectors: Tensor, labels: Tensor) -> None:
        """Add vectors."""
        self.engine.add(self._index, vectors)
        self.number(labels)

    def remove(self, labels: Tensor) -> None:
        """Put vectors under tombstones."""
        self._tombstones.add(labels)

    def find(self, queries: Tensor, count: int) -> Found | None:
        """Find vectors, those under tombstones passed over."""
        most = min(self.engine.most_found, len(self._labels))
        return self._tombstones.find(lambda wanted: self._search(queries, wanted), count, most)

    def clear(self) -> None:
        """Release everything."""
        self._index = None
        self._labels = torch.empty(0, dtype=torch.int64)
        self._in_place = True  # whether every label is its vector's place
        self._tombstones = Tombstones()

    def copy(self) -> Self:
        """Return an index that can be changed apart from this one."""
        twin = copy(self)
        twin._index = self.copy_index()
        twin._tombstones = self._tombstones.copy()
        return twin

    def copy_index(self) -> Any:
        """Return a copy of the faiss index, None if there is none."""
        return None if self._index is None else self.engine.copy(self._index)

    def number(self, labels: Tensor) -> None:
        """Take note of the labels of vectors that were added, ``[n]`` int64."""
        self._labels = torch.cat((self._labels, labels))
        # They ascend and none is negative.
        self._in_place = int(self._labels[-1]) == len(self._labels) - 1

    def find_places(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return products and places, ``[Q, count]`` on the CPU, -1 where no more was found."""
        return self.engine.search(self._index, queries, count)

    def _search(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        products, places = self.find_places(queries, count)
        if self._in_place:
            return products, places
        return products, self._labels[places].masked_fill_(places < 0, -1)


class FlatGpuIndex(PositionalIndex):
    """A copy of all vectors on a GPU, every one of which is compared."""

    def new_index(self, size: int) -> Any:
        """Return an index without vectors."""
        return self.engine.place(faiss.IndexFlatIP(size))
