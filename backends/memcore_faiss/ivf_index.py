"""Inverted files: vectors in lists by their nearest centroid, of which a search looks at a few."""

from __future__ import annotations

from copy import copy
from functools import partial
from math import sqrt
from typing import TYPE_CHECKING, Any, Final, Self

import attrs
import faiss

from memcore.approximate_index import Found, VectorIndex
from memcore.errors import BackendError
from memcore_faiss.effort import TRIED, Effort
from memcore_faiss.tombstones import Tombstones

if TYPE_CHECKING:
    from torch import Tensor

    from memcore_faiss.engine import Engine

_PER_LIST: Final = 50
"""Vectors to train with, per list."""

_GROWTH: Final = 4
"""Trained anew once so many times the vectors trained for were added: there should be twice as many lists by then."""

_LEAST: Final = 4
"""Lists searched at least when that is tried out: later queries may be unlike the first ones, and these cost little."""

_CODES: Final = 256
"""Values of a byte of a compressed vector, and vectors needed to learn them."""

_REFINED: Final = 8
"""Compressed vectors taken per one wanted, whose products are then computed exactly."""

_BYTES: Final = (64, 56, 48, 32, 28, 24, 20, 16, 12, 8, 4, 3, 2, 1)
"""Bytes per compressed vector that GPUs can search, up to what is enough when products are computed again."""

_PER_CODE: Final = 32
"""Vectors to learn each value of a byte from. With faiss's own 256, and 25 rounds, that takes minutes."""

_ROUNDS: Final = 10
"""Of learning the values of a byte."""


@attrs.frozen(kw_only=True)
class IvfSettings:
    """How an inverted file is made.

    Attributes:
        lists: None chooses by the number of vectors.
        probes: lists to search; None tries out how many it takes.
        recall: share of the best vectors that ``probes`` is to find when it is tried out.
        train_size: vectors to train with; None takes 50 per list.
        compressed: whether vectors are kept in a few bytes each (product quantisation).
        code_bytes: how many; None takes one for every 4 numbers or more, as the size allows.
        seed: of the clustering.
    """

    lists: int | None
    probes: int | None
    recall: float
    train_size: int | None
    compressed: bool
    code_bytes: int | None
    seed: int

    def lists_for(self, count: int) -> int:
        """Return the number of lists for so many vectors."""
        return lists_for(count, self.lists)


def lists_for(count: int, wanted: int | None) -> int:
    """Return the number of lists for so many vectors; ``wanted`` is how many there should be, if that is given."""
    return min(count, wanted or max(1, round(2 * sqrt(count))))


def code_bytes_for(size: int) -> int:
    """Return the bytes that a vector of ``size`` numbers is compressed to if nothing is said."""
    return next(number for number in _BYTES if size % number == 0 and (size >= 4 * number or number == 1))


class IvfIndex(VectorIndex):
    """An inverted file that trains on what is stored, when it is first needed and again when that has changed much.

    Args:
        engine: what calls faiss.
        settings: how it is made.
    """

    def __init__(self, engine: Engine, settings: IvfSettings) -> None:
        self._engine = engine
        self._settings = settings
        self._index: Any = None
        self.clear()

    @property
    def dead(self) -> int:
        """Vectors under tombstones; none where they can be removed."""
        return len(self._tombstones)

    @property
    def probes(self) -> int | None:
        """Lists that a search looks at, where there are so many; None before the first one since training."""
        return self._probes.value

    def sample_size(self, count: int) -> int:
        """Return how many vectors to train with."""
        size = self._settings.train_size or _PER_LIST * self._settings.lists_for(count)
        return max(size, _CODES if self._settings.compressed else 1, TRIED)

    def outgrown(self, count: int) -> bool:
        """Return whether the lists were made for far fewer vectors, or for others."""
        if self._index is None:
            return not self._is_too_small(count)
        return self._added + count - self._held >= _GROWTH * self._trained

    def start(self, size: int, count: int, sample: Tensor) -> None:
        """Train."""
        self.clear()
        if self._is_too_small(count):
            return
        lists = self._settings.lists_for(count)
        index = self._new_index(size, min(lists, len(sample)))
        self._engine.train(index, sample)
        self._index = index
        self._trained = count
        self._probes.start(sample)

    def add(self, vectors: Tensor, labels: Tensor) -> None:
        """Add vectors to their lists."""
        if self._index is not None:
            self._engine.add(self._index, vectors, labels)
        self._added += len(labels)
        self._held += len(labels)
        self._probes.change(len(labels))

    def remove(self, labels: Tensor) -> None:
        """Remove vectors from their lists, or put them under tombstones."""
        self._held -= len(labels)
        self._probes.change(len(labels))
        if self._index is not None and not self._engine.remove(self._index, labels):
            self._tombstones.add(labels)

    def find(self, queries: Tensor, count: int) -> Found | None:
        """Search some of the lists."""
        if self._index is None:
            return None
        if self._probes.is_due(self._held):
            self._choose_probes(queries)
        most = min(self._engine.most_found, int(self._index.ntotal))
        if not self._settings.compressed:
            return self._tombstones.find(lambda wanted: self._engine.search(self._index, queries, wanted), count, most)
        found = self._tombstones.find(
            lambda wanted: self._engine.search(self._index, queries, wanted), min(_REFINED * count, most), most
        )
        return found and Found(labels=found.labels, products=None)

    def clear(self) -> None:
        """Release everything."""
        self._index = None
        self._probes = Effort(fixed=self._settings.probes, recall=self._settings.recall, least=_LEAST)
        self._trained = 0  # vectors there when it was trained
        self._added = 0  # vectors added since then
        self._held = 0  # vectors added and not removed
        self._tombstones = Tombstones()

    def copy(self) -> Self:
        """Return an inverted file that can be changed apart from this one."""
        twin = copy(self)
        if self._index is not None:
            twin._index = self._engine.copy(self._index)
        twin._probes = self._probes.copy()
        twin._tombstones = self._tombstones.copy()
        return twin

    def _is_too_small(self, count: int) -> bool:
        return self._settings.compressed and count < _CODES

    def _new_index(self, size: int, lists: int) -> Any:
        quantizer = faiss.IndexFlatIP(size)
        index: Any
        if self._settings.compressed:
            code_bytes = self._settings.code_bytes or code_bytes_for(size)
            if size % code_bytes:
                raise BackendError(f"pq_m must divide the {size} numbers of a vector, and {code_bytes} does not")
            index = faiss.IndexIVFPQ(quantizer, size, lists, code_bytes, 8, faiss.METRIC_INNER_PRODUCT)
            index.pq.cp.seed = self._settings.seed
            index.pq.cp.niter = _ROUNDS
            index.pq.cp.min_points_per_centroid = 1
            index.pq.cp.max_points_per_centroid = _PER_CODE
        else:
            index = faiss.IndexIVFFlat(quantizer, size, lists, faiss.METRIC_INNER_PRODUCT)
        index = self._engine.place(index)
        # Not before: an index on a GPU has parameters of its own.
        index.cp.seed = self._settings.seed
        # faiss writes a warning to the terminal below 39. Recall is seen to when the probes are chosen.
        index.cp.min_points_per_centroid = 1
        return index

    def _choose_probes(self, queries: Tensor) -> None:
        lists = min(int(self._index.nlist), self._engine.most_found)

        def search(probes: int, some: Tensor, count: int) -> Tensor:
            self._index.nprobe = probes
            return self._engine.search(self._index, some, count)[0]

        exact = partial(self._engine.best_products, self._index)
        self._index.nprobe = min(lists, self._probes.choose(search, exact, queries, lists))
