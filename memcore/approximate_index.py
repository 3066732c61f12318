"""A search index over chunks from a library's index over vectors, which need not find the very best."""

from __future__ import annotations

from abc import ABC, abstractmethod
from time import perf_counter
from typing import TYPE_CHECKING, Final, Self

import attrs
import torch

from memcore import events
from memcore.chunk import NO_CHUNK, SearchResult
from memcore.exact_backend import exact_search
from memcore.in_memory import SearchIndex
from memcore.products import full_precision

if TYPE_CHECKING:
    from torch import Tensor

    from memcore.chunk_table import ChunkTable

_BLOCK: Final = 1 << 24
"""Numbers centred or gathered at a time, 64 MB."""

_DRIFT: Final = 0.5
"""Distance of the vectors' mean from the centre, in spreads, at which recall begins to fall (measured)."""

_MEASURED: Final = 512
"""Vectors from which mean and spread are estimated: their mean is within about 1/22 of a spread of that of all."""


_PIECE: Final = 64
"""Vectors of these that are added up at a time."""


@attrs.frozen(eq=False)
class Found:
    """What a :class:`VectorIndex` found for ``Q`` queries, best first.

    Attributes:
        labels: ``[Q, K]`` int64 on the CPU, -1 where no more was found.
        products: ``[Q, K]`` float32 on the CPU, the inner products of the queries with the vectors as they were added;
            None if the index knows them only roughly.
    """

    labels: Tensor
    products: Tensor | None


class VectorIndex(ABC):
    """A library's index: finds labelled vectors by inner product.

    It knows nothing of chunks, and is only called by an :class:`ApproximateIndex`, one call at a time. ``start`` comes
    first, and again whenever everything is to be built anew. If ``start`` or ``add`` raises, so does the search that
    called them, and the next one calls ``start``.
    """

    @property
    @abstractmethod
    def dead(self) -> int:
        """Vectors removed that still take room and time. Once they outnumber the others, all is built anew."""

    @abstractmethod
    def start(self, size: int, count: int, sample: Tensor) -> None:
        """Begin anew, without any vectors.

        Args:
            size: ``E``.
            count: vectors that are to be added now; more may follow later.
            sample: ``[n, E]`` float32, as many of them as ``sample_size`` says.
        """

    @abstractmethod
    def add(self, vectors: Tensor, labels: Tensor) -> None:
        """Add vectors.

        Args:
            vectors: ``[n, E]`` float32, contiguous, on the chunk table's device. Not to be kept without a copy.
            labels: ``[n]`` int64 on the CPU, ascending, larger than all before.
        """

    @abstractmethod
    def remove(self, labels: Tensor) -> None:
        """Never find these again: ``[n]`` int64 on the CPU, ascending, all of them added and not yet removed."""

    @abstractmethod
    def find(self, queries: Tensor, count: int) -> Found | None:
        """Find the vectors with the largest inner products.

        Args:
            queries: ``[Q, E]`` float32, finite, on the chunk table's device.
            count: wanted per query, fewer than there are vectors.

        Returns:
            ``K = count``, or more if the index knows the products only roughly: then the best are chosen from these.
            None if it cannot be done, and every vector has to be compared instead. Queries for which fewer are found
            are answered so, too.
        """

    @abstractmethod
    def clear(self) -> None:
        """Release everything."""

    @abstractmethod
    def copy(self) -> Self:
        """Return an index with the same vectors that can be changed apart from this one."""

    def sample_size(self, count: int) -> int:
        """Return how many of ``count`` vectors ``start`` wants to train with; if that is more, it gets all."""
        return 0

    def outgrown(self, count: int) -> bool:
        """Return whether all should be built anew, as it was not made for ``count`` vectors, or not for these."""
        return False


@attrs.frozen(eq=False, kw_only=True)
class Coverage:
    """What of a table a :class:`VectorIndex` holds.

    Attributes:
        vectors_per_chunk: ``V``. Vector ``v`` of the chunk with id ``i`` has the label ``i * V + v``.
        last_id: the largest id ever added; what the table holds beyond it is new.
        live: vectors added and not removed.
        centre: ``[E]``, subtracted from every vector; None if nothing was.
        unmeasured: vectors added since the mean of all was last compared with the centre.
    """

    vectors_per_chunk: int
    last_id: int
    live: int
    centre: Tensor | None
    unmeasured: int


class ApproximateIndex(SearchIndex):
    """Finds chunks through a :class:`VectorIndex`, which the first search that needs it brings up to date.

    Indexes that search by inner product go astray when all vectors share a large offset, as the keys of language
    models do: nearly every vector's best neighbours are then the same few long ones. So they are given the vectors
    less a common centre, their mean, unless that is small. It takes the same amount off every product with one query,
    so the order stays. Once half of the vectors are new and their mean has moved, all is built anew.

    Scores are exact for the chunks found.

    Args:
        vectors: an index without any vectors, or what ``coverage`` says.
        exact_below: up to so many vectors are all compared, without the index.
        seed: of the sample taken to train with and to find the centre.
        coverage: what ``vectors`` holds of the table, if it was loaded from somewhere.
    """

    def __init__(
        self, vectors: VectorIndex, *, exact_below: int, seed: int = 0, coverage: Coverage | None = None
    ) -> None:
        self.vectors = vectors
        self.coverage = coverage
        self._exact_below = exact_below
        self._seed = seed

    def search(self, table: ChunkTable, queries: Tensor, top_k: int) -> SearchResult:
        """Search the index, or every vector where that is faster or the index cannot help."""
        embeddings, coverage = table.embeddings, self.coverage
        chunks, per_chunk, _ = embeddings.shape
        if top_k >= chunks or chunks * per_chunk <= self._exact_below:
            return exact_search(table, queries, top_k)
        if coverage is None or coverage.live != chunks * per_chunk:
            coverage = self._catch_up(table, embeddings)
        # All neighbours could belong to few chunks. So many cannot belong to fewer than top_k.
        found = self.vectors.find(queries, (top_k - 1) * per_chunk + 1)
        if found is None:
            events.INDEX_BYPASSED.log(queries=len(queries), reason="the index cannot find so many")
            return exact_search(table, queries, top_k)
        ids = found.labels
        if per_chunk > 1:
            rough = found.products is None  # then all are compared
            ids = first_distinct(ids // per_chunk, max(top_k, ids.shape[1] // per_chunk) if rough else top_k)
        complete = ids.min().item() >= 0
        if complete and per_chunk == 1 and found.products is not None:
            return SearchResult(ids=ids, scores=_original(found.products, queries, coverage.centre))
        short = ids[:, top_k - 1] < 0
        if not complete and bool(short.any()):
            # Equal vectors that no link leads to, or lists too small: these queries do without the index.
            events.INDEX_BYPASSED.log(queries=int(short.sum()), reason="the index found too few")
            ids[short, :top_k] = exact_search(table, queries[short.to(queries.device)], top_k).ids
        result = score_chunks(table, queries, ids)
        return SearchResult(ids=result.ids[:, :top_k], scores=result.scores[:, :top_k])

    def removed(self, ids: Tensor) -> None:
        """Remove the chunks' vectors from the index."""
        coverage = self.coverage
        if coverage is None:
            return
        labels = _labels(ids[ids <= coverage.last_id], coverage.vectors_per_chunk)
        try:
            self.vectors.remove(labels)
        except Exception:
            # The chunks are gone all the same, and the index can be made again from those that are left.
            events.INDEX_FAILED.log(vectors=labels.numel(), traceback=True)
            self.forget()
            return
        self.coverage = attrs.evolve(coverage, live=coverage.live - labels.numel())
        if self.vectors.dead > self.coverage.live:
            self.forget()

    def copy(self) -> Self:
        """Return an index with a copy of the vectors' index."""
        return type(self)(self.vectors.copy(), exact_below=self._exact_below, seed=self._seed, coverage=self.coverage)

    def forget(self) -> None:
        """Empty the index, so that the next search that needs it builds it anew."""
        self.coverage = None
        self.vectors.clear()

    def _catch_up(self, table: ChunkTable, embeddings: Tensor) -> Coverage:
        begun = perf_counter()
        chunks, per_chunk, _ = embeddings.shape
        total = chunks * per_chunk
        coverage, why = self.coverage, "there was none"
        self.coverage = None  # what fails half way is built anew the next time
        if coverage is not None:
            unmeasured = coverage.unmeasured + total - coverage.live
            if 2 * unmeasured < total:
                coverage = attrs.evolve(coverage, unmeasured=unmeasured)
            elif self._has_moved(embeddings, coverage.centre):
                coverage, why = None, "the mean of the vectors has moved"
            else:
                coverage = attrs.evolve(coverage, unmeasured=0)
        if coverage is not None and self.vectors.outgrown(total):
            coverage, why = None, "the old one was not made for so many, or not for these"
        rebuilt = coverage is None
        coverage = coverage or self._start(embeddings)
        first = coverage.live // per_chunk  # the table keeps its order, so new chunks are its last
        step = max(1, _BLOCK // (per_chunk * embeddings.shape[2]))
        for at in range(first, chunks, step):
            block = embeddings[at : at + step]
            if coverage.centre is not None:
                block = block - coverage.centre
            self.vectors.add(block.flatten(0, 1), _labels(table.ids[at : at + step], per_chunk))
        self.coverage = attrs.evolve(coverage, live=total, last_id=int(table.ids[-1]))
        seconds = perf_counter() - begun
        if rebuilt:
            events.INDEX_BUILT.log(vectors=total, reason=why, seconds=seconds)
        else:
            events.INDEX_EXTENDED.log(added=total - first * per_chunk, vectors=total, seconds=seconds)
        return self.coverage

    def _start(self, embeddings: Tensor) -> Coverage:
        chunks, per_chunk, size = embeddings.shape
        total = chunks * per_chunk
        mean, spread = self._measure(embeddings)
        centre = mean if _is_large(mean, spread) else None
        sample = self._sample(embeddings, self.vectors.sample_size(total))
        self.vectors.start(size, total, sample if centre is None else sample - centre)
        return Coverage(vectors_per_chunk=per_chunk, last_id=-1, live=0, centre=centre, unmeasured=0)

    def _has_moved(self, embeddings: Tensor, centre: Tensor | None) -> bool:
        mean, spread = self._measure(embeddings)
        return _is_large(mean if centre is None else mean - centre, spread)

    def _measure(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors' mean, ``[E]``, and their mean squared distance from it."""
        vectors = embeddings.flatten(0, 1)
        places, count = self._places(vectors, _MEASURED), min(len(vectors), _MEASURED)
        # Distances from one of them, summed up in pieces: numbers stay small, and new memory for all of the sample
        # would take longer than the arithmetic.
        near = vectors[0]
        total, squares = torch.zeros_like(near), near.new_zeros(())
        for at in range(0, count, _PIECE):
            part = slice(at, min(at + _PIECE, count))
            away = (vectors[part] if places is None else vectors.index_select(0, places[part])) - near
            total += away.sum(dim=0)
            squares += torch.dot(away.view(-1), away.view(-1))
        offset = total / count
        return near + offset, (squares / count - torch.dot(offset, offset)).clamp(min=0)

    def _sample(self, embeddings: Tensor, count: int) -> Tensor:
        vectors = embeddings.flatten(0, 1)
        places = self._places(vectors, count)
        return vectors if places is None else vectors.index_select(0, places)

    def _places(self, vectors: Tensor, count: int) -> Tensor | None:
        """Return where ``count`` random vectors are, or None for all if there are no more."""
        if len(vectors) <= count:
            return None
        order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(self._seed))
        return order[:count].to(vectors.device)


def first_distinct(ids: Tensor, top_k: int) -> Tensor:
    """Return the first ``top_k`` distinct ids of each row, ``[Q, top_k]``, in their order, then -1.

    Args:
        ids: ``[Q, K]`` int64, negative where there is none; ``K`` at least ``top_k``.
        top_k: at least 1.
    """
    count = ids.shape[1]
    by_id, order = ids.sort(dim=1, stable=True)
    first = by_id >= 0
    first[:, 1:] &= by_id[:, 1:] != by_id[:, :-1]
    places = torch.where(first, order, count).sort(dim=1).values[:, :top_k]
    return ids.gather(1, places.clamp(max=count - 1)).masked_fill(places == count, NO_CHUNK)


def score_chunks(table: ChunkTable, queries: Tensor, ids: Tensor) -> SearchResult:
    """Score chunks by their best vectors, exactly, and put the best first.

    Args:
        table: what holds the chunks.
        queries: ``[Q, E]`` float32 on the table's device.
        ids: ``[Q, k]`` int64 on the CPU, negative where there is none.

    Returns:
        Ids on the CPU and scores on the table's device, ``[Q, k]``; the score of none is ``-inf``.
    """
    none = ids < 0
    rows = table.rows(ids.where(~none, table.ids[0]).flatten()).view_as(ids).to(queries.device)
    vectors = table.embeddings
    scores = queries.new_empty(ids.shape)
    step = max(1, _BLOCK // (ids.shape[1] * vectors.shape[1] * vectors.shape[2]))
    with full_precision(queries.device.type):
        for at in range(0, len(ids), step):
            part = slice(at, at + step)
            gathered = vectors.index_select(0, rows[part].flatten()).view(-1, ids.shape[1], *vectors.shape[1:])
            scores[part] = torch.einsum("qkve,qe->qkv", gathered, queries[part]).amax(dim=2)
    scores, order = scores.masked_fill_(none.to(scores.device), -torch.inf).sort(dim=1, descending=True)
    return SearchResult(ids=ids.gather(1, order.cpu()), scores=scores)


def _labels(ids: Tensor, per_chunk: int) -> Tensor:
    return ids if per_chunk == 1 else (ids[:, None] * per_chunk + torch.arange(per_chunk)).flatten()


def _original(products: Tensor, queries: Tensor, centre: Tensor | None) -> Tensor:
    """Return the products with the vectors as they were before the centre was subtracted."""
    if centre is None:
        return products
    with full_precision(queries.device.type):
        return products + (queries @ centre).to(products.device)[:, None]


def _is_large(offset: Tensor, spread: Tensor) -> bool:
    return bool(offset.square().sum() > _DRIFT**2 * spread)
