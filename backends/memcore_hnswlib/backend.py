"""The ``hnswlib`` backend: a graph per namespace leads to the chunks, memcore's own tables hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self

import attrs
import hnswlib
import torch
from attrs.validators import and_, ge, instance_of, le

from memcore.chunk import SearchResult
from memcore.exact_backend import exact_search
from memcore.in_memory import InMemoryBackend, SearchIndex

if TYPE_CHECKING:
    from torch import Tensor

    from memcore.chunk_table import ChunkTable

_BLOCK: Final = 1 << 24
"""Numbers gathered at a time while scoring what the graph found, 64 MB."""

_DRIFT: Final = 0.5
"""Distance of the vectors' mean from the graph's centre, in spreads, at which recall begins to fall (measured)."""


def _whole(at_least: int, at_most: int) -> Any:
    return and_(instance_of(int), ge(at_least), le(at_most))


@attrs.frozen(kw_only=True)
class HnswlibOptions:
    """Options of the ``hnswlib`` backend.

    Attributes:
        M: links per vector in the graph, 2 to 128. More find better and cost memory and time to build.
        ef_construction: neighbours considered when a vector is added. More find better and cost time to build.
        ef: neighbours considered in a search, raised where a search asks for more. More find better, more slowly.
        seed: of the graph's random levels.
        threads: for adding and searching. Only with 1 is a graph the same from run to run.
        exact_below: a namespace with at most this many vectors is searched exactly, without a graph, which is faster
            for so few and needs nothing built; 0 always uses the graph.
    """

    M: int = attrs.field(default=16, validator=_whole(2, 128))
    ef_construction: int = attrs.field(default=200, validator=_whole(1, 100_000))
    ef: int = attrs.field(default=256, validator=_whole(1, 100_000))
    seed: int = attrs.field(default=0, validator=_whole(0, 2**31 - 1))
    threads: int = attrs.field(default=1, validator=_whole(1, 1024))
    exact_below: int = attrs.field(default=4096, validator=_whole(0, 2**31 - 1))


class HnswlibIndex(SearchIndex):
    """A graph over all vectors of a table's chunks, brought up to date by the first search that needs it.

    hnswlib walks the graph by inner product, and that goes astray when all vectors share a large offset, as the keys
    of language models do: nearly every vector's best neighbours are then the same few long ones. So the graph holds
    the vectors less their mean. That takes the same amount off every product with one query, so the order stays.

    Vector ``v`` of the chunk with id ``i`` has the label ``i * V + v``. Removed chunks are marked in the graph, which
    is built anew once they outnumber the others.

    Args:
        options: the backend's.
    """

    def __init__(self, options: HnswlibOptions) -> None:
        self._options = options
        self._graph: Any = None  # hnswlib has no type hints
        self._centre = torch.empty(0)
        self._vectors_per_chunk = 0
        self._last_id = -1
        self._removed = 0

    def search(self, table: ChunkTable, queries: Tensor, top_k: int) -> SearchResult:
        """Search the graph and score what it finds exactly; search without it where it cannot help."""
        per_chunk = table.embeddings.shape[1]
        # All neighbours could belong to few chunks. So many cannot belong to fewer than top_k.
        wanted = top_k * per_chunk
        if len(table) * per_chunk <= max(self._options.exact_below, wanted):
            return exact_search(table, queries, top_k)
        try:
            self._catch_up(table)
        except BaseException:
            self._graph = None  # half of something: build it anew next time
            raise
        self._graph.set_ef(max(self._options.ef, wanted))
        try:
            labels, _ = self._graph.knn_query(queries.numpy(), wanted, num_threads=self._options.threads)
        except RuntimeError:
            # Graphs of many equal vectors can fall apart, and too few can be reached from the entry point.
            return exact_search(table, queries, top_k)
        return _score(table, queries, _first_distinct(torch.from_numpy(labels.astype("int64")) // per_chunk, top_k))

    def removed(self, ids: Tensor) -> None:
        """Mark the chunks' vectors as deleted in the graph."""
        if self._graph is None:
            return
        for first in (ids[ids <= self._last_id] * self._vectors_per_chunk).tolist():
            for label in range(first, first + self._vectors_per_chunk):
                self._graph.mark_deleted(label)
            self._removed += self._vectors_per_chunk
        if 2 * self._removed > self._graph.get_current_count():
            self._graph = None

    def copy(self) -> Self:
        """Return an index with a copy of the graph."""
        twin = type(self)(self._options)
        if self._graph is not None:
            twin._graph = hnswlib.Index(self._graph)
            twin._centre = self._centre
            twin._vectors_per_chunk = self._vectors_per_chunk
            twin._last_id = self._last_id
            twin._removed = self._removed
        return twin

    def _catch_up(self, table: ChunkTable) -> None:
        first = 0 if self._graph is None else int(torch.searchsorted(table.ids, self._last_id, right=True))
        if first == len(table):
            return
        embeddings = table.embeddings
        if self._graph is not None:
            needed = self._graph.get_current_count() + (len(table) - first) * self._vectors_per_chunk
            if needed > self._graph.get_max_elements():
                if self._has_drifted(embeddings):
                    first = 0
                else:
                    self._graph.resize_index(max(needed, 2 * self._graph.get_max_elements()))
        if first == 0:
            self._start(embeddings)
        labels = table.ids[first:, None] * self._vectors_per_chunk + torch.arange(self._vectors_per_chunk)
        vectors = (embeddings[first:] - self._centre).flatten(0, 1)
        self._graph.add_items(vectors.numpy(), labels.flatten().numpy(), num_threads=self._options.threads)
        self._last_id = int(table.ids[-1])

    def _start(self, embeddings: Tensor) -> None:
        """Begin an empty graph with room for these vectors."""
        chunks, self._vectors_per_chunk, size = embeddings.shape
        self._centre = embeddings.mean(dim=(0, 1))
        self._graph = hnswlib.Index("ip", size)
        self._graph.init_index(
            max_elements=chunks * self._vectors_per_chunk,
            ef_construction=self._options.ef_construction,
            M=self._options.M,
            random_seed=self._options.seed,
        )
        self._removed = 0

    def _has_drifted(self, embeddings: Tensor) -> bool:
        mean = embeddings.mean(dim=(0, 1))
        spread = (embeddings - mean).square().sum(dim=2).mean()
        return bool((mean - self._centre).square().sum() > _DRIFT**2 * spread)


def _first_distinct(ids: Tensor, top_k: int) -> Tensor:
    """Return the first ``top_k`` distinct ids of each row, ``[Q, top_k]``, in their order.

    Args:
        ids: ``[Q, K]`` int64; every row has ``top_k`` distinct ids or more.
        top_k: at least 1.
    """
    by_id, order = ids.sort(dim=1, stable=True)
    first = torch.ones_like(ids, dtype=torch.bool)
    first[:, 1:] = by_id[:, 1:] != by_id[:, :-1]
    places = torch.where(first, order, ids.shape[1]).sort(dim=1).values[:, :top_k]
    return ids.gather(1, places)


def _score(table: ChunkTable, queries: Tensor, ids: Tensor) -> SearchResult:
    """Score the chunks ``[Q, k]`` by their best vectors, exactly, and put the best first."""
    rows = table.rows(ids.flatten()).view_as(ids)
    vectors = table.embeddings
    scores = torch.empty(ids.shape)
    step = max(1, _BLOCK // (ids.shape[1] * vectors.shape[1] * vectors.shape[2]))
    with torch.autocast("cpu", enabled=False):
        for at in range(0, len(ids), step):
            part = slice(at, at + step)
            scores[part] = torch.einsum("qkve,qe->qkv", vectors[rows[part]], queries[part]).amax(dim=2)
    scores, order = scores.sort(dim=1, descending=True)
    return SearchResult(ids=ids.gather(1, order), scores=scores)


class HnswlibBackend(InMemoryBackend):
    """Keeps chunks in memory and finds them through a graph: approximate, and much faster than comparing with all.

    Everything comes back on the CPU. Scores are exact for the chunks found.

    Args:
        options: :class:`HnswlibOptions`.
    """

    Options = HnswlibOptions

    def __init__(self, options: object) -> None:
        super().__init__(options)
        self._options = options

    def new_index(self) -> SearchIndex:
        """Return an :class:`HnswlibIndex`."""
        assert isinstance(self._options, HnswlibOptions)
        return HnswlibIndex(self._options)
