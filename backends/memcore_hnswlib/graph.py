"""hnswlib's graph as an index over labelled vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self

import hnswlib
import numpy as np
import torch

from memcore.approximate_index import Found, VectorIndex

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from memcore_hnswlib.options import HnswlibOptions


_LOCKS: Final = 65_536 * 40
"""Bytes of the locks that every graph has for labels, however few it holds."""


def graph_bytes(count: int, size: int, links: int) -> int:
    """Return what a graph takes in memory, in bytes, as hnswlib 0.8 lays it out.

    A vector has its numbers, twice ``links`` neighbours and their number, its label; with a probability of 1/``links``
    a level more of up to ``links`` neighbours, and so on; and beside the graph a lock, its level, a pointer, and its
    place in a hash table. Every graph has locks of 2.5 MiB as well.

    Args:
        count: vectors.
        size: numbers of each.
        links: ``M``.
    """
    ground = 4 * size + 4 * 2 * links + 4 + 8
    above = (4 * links + 4) / (links - 1)
    beside = 40 + 4 + 8 + 40
    return _LOCKS + round(count * (ground + above + beside))


class HnswlibVectors(VectorIndex):
    """A graph of vectors, whose room doubles when it is full.

    Removed vectors are only marked: the graph's links still lead over them. New ones take their places, which keeps
    the graph as small and as fast as it was, but takes 4 to 5 times as long as adding, since the links around have to
    be mended. So where half or more of all vectors are removed at once, building anew from the rest is faster, and
    :class:`memcore.approximate_index.ApproximateIndex` does that.

    Args:
        options: the backend's.
    """

    def __init__(self, options: HnswlibOptions) -> None:
        self._options = options
        self._graph: Any = None  # hnswlib has no type hints
        self._dead = 0
        self._too_many: int | None = None

    @property
    def dead(self) -> int:
        """Vectors removed whose places are not taken yet."""
        return self._dead

    def start(self, size: int, count: int, sample: Tensor) -> None:
        """Begin anew: see :meth:`memcore.approximate_index.VectorIndex.start`."""
        self._dead, self._too_many = 0, None
        self._graph = hnswlib.Index("ip", size)
        self._graph.init_index(
            max_elements=count,
            ef_construction=self._options.ef_construction,
            M=self._options.M,
            random_seed=self._options.seed,
            allow_replace_deleted=True,
        )

    def add(self, vectors: Tensor, labels: Tensor) -> None:
        """Add vectors, first in place of removed ones."""
        self._too_many = None
        again = min(self._dead, len(vectors))
        needed = self._graph.get_current_count() + len(vectors) - again
        if needed > self._graph.get_max_elements():
            self._graph.resize_index(max(needed, 2 * self._graph.get_max_elements()))
        data, names, threads = vectors.numpy(), labels.numpy(), self._options.threads
        if again:
            self._graph.add_items(data[:again], names[:again], num_threads=threads, replace_deleted=True)
            self._dead -= again
        if again < len(data):
            self._graph.add_items(data[again:], names[again:], num_threads=threads)

    def remove(self, labels: Tensor) -> None:
        """Mark vectors as deleted."""
        self._too_many = None
        for label in labels.tolist():
            self._graph.mark_deleted(label)
        self._dead += labels.numel()

    def find(self, queries: Tensor, count: int) -> Found | None:
        """Search the graph, or return None where too few vectors can be reached in it.

        That is not tried again before the graph changes: it takes time, and hnswlib never frees what it had reserved
        for the result.
        """
        if self._too_many is not None and count >= self._too_many:
            return None
        self._graph.set_ef(max(self._options.ef, count))
        try:
            labels, distances = self._graph.knn_query(queries.numpy(), count, num_threads=self._options.threads)
        except RuntimeError:
            # Graphs of many equal vectors can fall apart, and too few can be reached from the entry point.
            self._too_many = count
            return None
        # hnswlib's distance is one less the product.
        return Found(torch.from_numpy(labels.view(np.int64)), torch.from_numpy(1 - distances))

    def clear(self) -> None:
        """Let go of the graph."""
        self._graph = None
        self._dead, self._too_many = 0, None

    def copy(self) -> Self:
        """Return an index with a copy of the graph."""
        twin = type(self)(self._options)
        if self._graph is not None:
            twin._graph = hnswlib.Index(self._graph)
            twin._dead, twin._too_many = self._dead, self._too_many
        return twin

    def save(self, path: Path) -> None:
        """Write the graph to a file.

        Raises:
            OSError: it could not be written.
        """
        path.touch()  # hnswlib says nothing if it cannot write
        self._graph.save_index(str(path))
        if path.stat().st_size != self._graph.index_file_size():
            raise OSError(f"hnswlib could not write {path.name}")

    def load(self, path: Path, *, size: int, count: int, dead: int) -> None:
        """Read a graph that ``save`` wrote.

        Args:
            path: its file.
            size: ``E`` of its vectors. The file does not say, and another is not noticed.
            count: vectors in it, with the dead ones.
            dead: vectors removed whose places were not taken.

        Raises:
            RuntimeError: it is no graph, or not of so many vectors.
        """
        graph = hnswlib.Index("ip", size)
        graph.load_index(str(path), allow_replace_deleted=True)
        if graph.get_current_count() != count:
            raise RuntimeError(f"{path.name} holds {graph.get_current_count()} vectors instead of {count}")
        self._graph, self._dead = graph, dead
