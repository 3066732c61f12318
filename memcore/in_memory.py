"""A backend in memory from any search index: keeps the chunks itself and asks the index only to find them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from threading import RLock
from typing import ClassVar, Self

import attrs
import torch
from torch import Tensor

from memcore.backend import MemoryBackend
from memcore.chunk import NO_CHUNK, ChunkBatch, SearchResult
from memcore.chunk_table import ChunkTable
from memcore.compression import Compression
from memcore.errors import BackendError, ClosedError, ConfigError, UnknownNamespaceError
from memcore.footprint import Footprint


class SearchIndex(ABC):
    """Finds the chunks of one :class:`ChunkTable` by inner product.

    The table is the truth and the index a help to search it: the index may catch up with the table as late as the
    next ``search``. Ids only grow, so what is new since the index last looked are the rows with larger ids.
    """

    @abstractmethod
    def search(self, table: ChunkTable, queries: Tensor, top_k: int) -> SearchResult:
        """Find the best chunks for each query, as :meth:`memcore.backend.MemoryBackend.retrieve` says.

        Args:
            table: the chunks, at least one.
            queries: ``[Q, E]`` float32, finite, on the table's device.
            top_k: from 1 to ``len(table)``.

        Returns:
            Ids and scores, ``[Q, top_k]``, on any device.
        """

    @abstractmethod
    def removed(self, ids: Tensor) -> None:
        """Take note that these ids, ``[M]`` int64, ascending, without repeats, have just left the table."""

    @abstractmethod
    def copy(self) -> Self:
        """Return an index for a copy of the table, which has the same ids."""


def table_footprint(
    like: ChunkBatch, chunks: int, namespaces: int, *, device: str, compression: Compression, index: int = 0
) -> Footprint:
    """Return what chunks take in :class:`ChunkTable`, for a backend's ``footprint``.

    Args:
        like: one chunk.
        chunks: in each namespace.
        namespaces: that have so many.
        device: where the tables are.
        compression: how payloads are kept.
        index: bytes that the index of a namespace takes in RAM beside its table.
    """
    table = ChunkTable(compression=compression, pin_memory=False)
    table.add(like)
    count = chunks * namespaces
    vectors = count * like.embeddings.nbytes
    payload = count * table.nbytes - vectors
    places = count * 2 * torch.int64.itemsize  # the table's ids, and where their payloads are
    on_cpu = torch.device(device).type == "cpu"
    own = namespaces * index + places
    return Footprint(
        payload=payload,
        vectors=vectors,
        index=own,
        ram=own + (payload + vectors if on_cpu else 0),
        gpu=0 if on_cpu else payload + vectors,
    )


@attrs.define
class _Namespace:
    table: ChunkTable
    index: SearchIndex


class InMemoryBackend(MemoryBackend):
    """Everything a backend in memory does but search; a subclass says in ``new_index`` what searches.

    ``fetch`` returns tensors on ``device``; ids and search results are on the CPU. One lock guards all of it, so an
    instance may be used from several threads, one call at a time.

    Args:
        options: instance of ``Options``.
        device: where embeddings and payloads live.
        compression: how payloads are kept, see :class:`memcore.chunk_table.ChunkTable`.
        pin_memory: whether ``fetch`` returns page-locked memory, see there.

    Raises:
        BackendError: torch cannot use the device, or memory is to be pinned and cannot be.
    """

    thread_safe: ClassVar[bool] = True

    def __init__(
        self,
        options: object,
        device: str = "cpu",
        *,
        compression: Compression = "none",
        pin_memory: bool | None = None,
    ) -> None:
        if not isinstance(options, self.Options):
            raise ConfigError(
                f"{type(self).__name__} takes {self.Options.__qualname__}, got {type(options).__qualname__}"
            )
        try:
            self.device = torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            raise BackendError(f"cannot keep chunks on device {device!r}: {error}") from error
        self._nothing = ChunkTable(self.device, compression=compression, pin_memory=pin_memory)
        self._namespaces: dict[str, _Namespace] = {}
        self._closed = False
        self._lock = RLock()

    @abstractmethod
    def new_index(self) -> SearchIndex:
        """Return the index of a namespace that is about to get its first chunks."""

    def store(self, namespace: str, chunks: ChunkBatch) -> Tensor:
        """Add chunks: see :meth:`memcore.backend.MemoryBackend.store`."""
        with self._lock:
            self._check_open()
            found = self._namespaces.get(namespace) or _Namespace(self._nothing.copy(), self.new_index())
            ids = found.table.add(chunks)
            self._namespaces[namespace] = found
            return ids

    def retrieve(self, namespace: str, queries: Tensor, top_k: int) -> SearchResult:
        """Find chunks: see :meth:`memcore.backend.MemoryBackend.retrieve`."""
        with self._lock:  # gradients need no turning off: queries are detached, and nothing stored has any
            self._check_open()
            if top_k < 1:
                raise ConfigError(f"top_k must be at least 1, got {top_k}")
            found = self._namespaces.get(namespace)
            table = found.table if found else self._nothing
            queries = table.check_queries(queries)
            k = min(top_k, len(table)) if len(queries) else 0
            if found and k == top_k:
                return found.index.search(table, queries, k).cpu()
            ids = torch.full((len(queries), top_k), NO_CHUNK)
            scores = torch.full((len(queries), top_k), -torch.inf)
            if found and k:
                result = found.index.search(table, queries, k)
                ids[:, :k] = result.ids
                scores[:, :k] = result.scores
            return SearchResult(ids=ids, scores=scores)

    def fetch(self, namespace: str, ids: Tensor) -> ChunkBatch:
        """Return chunks on ``device``: see :meth:`memcore.backend.MemoryBackend.fetch`."""
        with self._lock:
            return self._get(namespace).table.take(ids)

    def evict(self, namespace: str, ids: Tensor) -> None:
        """Remove chunks: see :meth:`memcore.backend.MemoryBackend.evict`."""
        with self._lock:
            found = self._get(namespace)
            found.index.removed(found.table.remove(ids))

    def drop(self, namespace: str) -> None:
        """Remove a namespace: see :meth:`memcore.backend.MemoryBackend.drop`."""
        with self._lock:
            self._check_open()
            self._namespaces.pop(namespace, None)

    def ids(self, namespace: str) -> Tensor:
        """Return the ids stored: see :meth:`memcore.backend.MemoryBackend.ids`."""
        with self._lock:
            self._check_open()
            found = self._namespaces.get(namespace)
            return found.table.ids.clone() if found else torch.empty(0, dtype=torch.int64)

    def namespaces(self) -> list[str]:
        """Return the names of all namespaces, sorted."""
        with self._lock:
            self._check_open()
            return sorted(self._namespaces)

    def nbytes(self, namespace: str | None = None) -> int:
        """Return the bytes of the chunks stored.

        Columns grow by doubling, so the process may hold up to twice as much, and what the index takes beside it.
        """
        with self._lock:
            self._check_open()
            return sum(
                found.table.nbytes for name, found in self._namespaces.items() if namespace is None or name == namespace
            )

    def copy(self, source: str, target: str) -> None:
        """Copy a namespace, ids and all, without the room its columns keep free."""
        with self._lock:
            self._check_open()
            found = self._namespaces.get(source)
            if source == target:
                return
            if found is None:
                self._namespaces.pop(target, None)
            else:
                self._namespaces[target] = _Namespace(found.table.copy(), found.index.copy())

    def put_namespace(self, namespace: str, table: ChunkTable, index: SearchIndex) -> None:
        """Make a namespace of chunks that a subclass loaded from somewhere, in place of one of that name."""
        with self._lock:
            self._check_open()
            self._namespaces[namespace] = _Namespace(table, index)

    def close(self) -> None:
        """Forget everything. Calling it again does nothing."""
        with self._lock:
            self._closed = True
            self._namespaces.clear()

    def _get(self, namespace: str) -> _Namespace:
        self._check_open()
        found = self._namespaces.get(namespace)
        if found is None:
            raise UnknownNamespaceError(f"no namespace {namespace!r}; there are {len(self._namespaces)} others")
        return found

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{type(self).__name__} was closed")
