"""The contract between the memory bank and whatever holds the chunks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import attrs
from torch import Tensor

from memcore.chunk import ChunkBatch, SearchResult
from memcore.errors import BackendError
from memcore.footprint import Footprint
from memcore.options import NoOptions
from memcore.storage import NamespaceStorage, Storage


class MemoryBackend(ABC):
    """Holds chunks in namespaces and finds them again by inner product.

    A namespace is one sequence's memory in one layer; it comes into being with the first ``store`` and is gone after
    ``drop``. Ids are assigned by the backend: non-negative, growing in storing order, never reused in a namespace, not
    even after eviction. The first ``store`` fixes a namespace's ``V``, ``E``, ``H``, ``D``, ``Dv`` and dtype; the chunk
    length may vary from one ``store`` to the next.

    Tensors may come in on any device and are returned on the CPU unless the backend documents otherwise. A call that
    raises leaves what is stored as it was.

    Attributes:
        Options: frozen attrs class that the user's ``backend_options`` are structured into, strictly.
        thread_safe: whether one instance may be used from several threads at once.
    """

    Options: ClassVar[type] = NoOptions
    thread_safe: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, options: object) -> None:
        """Open the backend with an instance of ``Options``."""

    @classmethod
    def about(cls) -> str:
        """Return what it runs on here, e.g. the build of a library, in a few words for ``memcore doctor``."""
        return ""

    @classmethod
    def footprint(cls, options: object, like: ChunkBatch, chunks: int, namespaces: int) -> Footprint:
        """Return what chunks would take, without storing any; for ``memcore plan``.

        Args:
            options: an instance of ``Options``; nothing is opened.
            like: one chunk. All are taken to be of its shapes and dtypes.
            chunks: in each namespace.
            namespaces: that have so many.

        Raises:
            BackendError: this backend does not say.
        """
        raise BackendError(f"{cls.__name__} does not say what chunks take in it (it has no footprint of its own)")

    @abstractmethod
    def store(self, namespace: str, chunks: ChunkBatch) -> Tensor:
        """Add ``N`` chunks and return their ids.

        Returns:
            ``[N]`` int64, ascending.

        Raises:
            ChunkShapeError: the chunks do not fit what the namespace holds.
            BackendError: an embedding is NaN or infinite. :mod:`memcore.backend_checks` finds that, and most of what
                other methods must refuse.
        """

    @abstractmethod
    def retrieve(self, namespace: str, queries: Tensor, top_k: int) -> SearchResult:
        """Find the ``top_k`` chunks with the largest inner product, for each query on its own.

        A chunk's score is that of its best vector. An unknown or empty namespace yields only ``NO_CHUNK``. Equal
        scores may come in any order.

        Args:
            namespace: where to look.
            queries: ``[Q, E]`` float32.
            top_k: chunks wanted per query, at least 1.

        Raises:
            ChunkShapeError: the queries are not ``[Q, E]``, ``E`` being that of the namespace.
            BackendError: a query is NaN or infinite.
            ConfigError: ``top_k`` is less than 1.
        """

    @abstractmethod
    def fetch(self, namespace: str, ids: Tensor) -> ChunkBatch:
        """Return the chunks with these ids, in this order, dtype kept bit for bit.

        Args:
            namespace: where they are stored.
            ids: ``[N]`` int64, repeats allowed. Of none the tensors are empty and of the namespace's shapes.

        Raises:
            ChunkShapeError: ``ids`` is something else.
            UnknownNamespaceError: nothing was ever stored there, or it was dropped.
            UnknownChunkError: an id is not stored; the message names it.
        """

    @abstractmethod
    def evict(self, namespace: str, ids: Tensor) -> None:
        """Remove chunks for good: all of them, or none if it raises.

        Raises:
            ChunkShapeError: as in ``fetch``.
            UnknownNamespaceError: as in ``fetch``.
            UnknownChunkError: as in ``fetch``.
        """

    @abstractmethod
    def drop(self, namespace: str) -> None:
        """Remove a namespace and all its chunks; do nothing if there is none."""

    @abstractmethod
    def ids(self, namespace: str) -> Tensor:
        """Return the ids stored in a namespace: ``[N]`` int64, ascending; empty for an unknown namespace."""

    @abstractmethod
    def namespaces(self) -> list[str]:
        """Return the names of all namespaces that exist, sorted."""

    @abstractmethod
    def nbytes(self, namespace: str | None = None) -> int:
        """Return the bytes that embeddings and payloads take, of one namespace or of all."""

    def count(self, namespace: str) -> int:
        """Return how many chunks a namespace holds, 0 if there is none of that name."""
        return int(self.ids(namespace).numel())

    def copy(self, source: str, target: str) -> None:
        """Make ``target`` a namespace with the chunks of ``source``, under ids of its own in the same order.

        Backends that can share storage, or undo what fails, should override this: here ``target`` is gone if ``store``
        raises.
        """
        if source == target:
            return
        ids = self.ids(source)
        chunks = self.fetch(source, ids) if ids.numel() else None  # what cannot be read costs the target nothing
        self.drop(target)
        if chunks is not None:
            self.store(target, chunks)

    @abstractmethod
    def close(self) -> None:
        """Release what the backend holds. Calling it again does nothing; other calls raise ClosedError."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@attrs.frozen(kw_only=True)
class Damage:
    """Something stored that cannot be read back as it was written.

    Attributes:
        namespace: where it lies; None if it belongs to none.
        id: the chunk's id; None if it is no chunk.
        problem: what is wrong, in words.
    """

    namespace: str | None = None
    id: int | None = None
    problem: str

    def __str__(self) -> str:
        place = [] if self.namespace is None else [f"namespace {self.namespace!r}"]
        place += [] if self.id is None else [f"chunk {self.id}"]
        return f"{', '.join(place)}: {self.problem}" if place else self.problem


class PersistentBackend(MemoryBackend):
    """A backend whose chunks outlive the process.

    ``flush`` is the commit point. After a crash the backend is, as a whole, as it was at one moment: that of the last
    ``flush`` that returned, or a later one. ``close`` flushes. Ids go on where they were: they are not used again
    after a reopening either.

    Beside chunks it keeps records, small named values of its user, committed together with the chunks by ``flush``.

    ``Options`` must have at least the fields ``path``, a :class:`pathlib.Path`, and ``read_only``, a bool that is
    False by default. Opened with ``read_only`` it shows what was last flushed, also by another process that goes on
    writing if the backend can do that, and everything that would write raises :class:`memcore.ReadOnlyError`.

    Raises, on opening:
        BackendError: the path cannot be used, or another process writes there and the backend has one writer.
        CorruptedError: what is there is no memory, or one of a version that this backend does not read.
    """

    @property
    @abstractmethod
    def read_only(self) -> bool:
        """Whether nothing can be written."""

    @abstractmethod
    def flush(self) -> None:
        """Make everything so far durable, in one step. Nothing to do if read-only."""

    @abstractmethod
    def write_record(self, name: str, value: bytes) -> None:
        """Keep a value under a name, in place of what was there."""

    @abstractmethod
    def read_record(self, name: str) -> bytes | None:
        """Return the value under a name, None if there is none."""

    @abstractmethod
    def drop_record(self, name: str) -> None:
        """Remove a record; do nothing if there is none."""

    @abstractmethod
    def record_names(self) -> list[str]:
        """Return the names of all records, sorted."""

    @abstractmethod
    def disk_bytes(self) -> int:
        """Return the bytes of disk space taken by the files, whether in use or free inside of them."""

    def storage(self) -> Storage:
        """Return what the bytes on disk are. A backend should override this if it knows more than their number."""
        namespaces = {
            name: NamespaceStorage(
                chunks=self.count(name),
                dtype=str(self.fetch(name, self.ids(name)[:1]).keys.dtype).removeprefix("torch."),
                parts={"chunks": self.nbytes(name)},
            )
            for name in self.namespaces()
        }
        known = sum(sum(each.parts.values()) for each in namespaces.values())
        return Storage(namespaces=namespaces, parts={"other": max(0, self.disk_bytes() - known)})

    @abstractmethod
    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[Damage]:
        """Read everything that was flushed and return what is damaged.

        Args:
            progress: called with (entries done, entries in all).
        """

    @classmethod
    def salvage(
        cls, options: object, target: Path | None = None, progress: Callable[[int, int], None] | None = None
    ) -> list[Damage]:
        """Copy what is sound of a memory that is damaged, so that it may not open any more; return what is not.

        Chunks keep their ids. A backend may do without.

        Args:
            options: an instance of ``Options``; nobody may have the memory open for writing.
            target: where to; nothing may be there. None to copy nothing, and only tell.
            progress: called with (entries done, entries in all).

        Raises:
            BackendError: the backend cannot do it, or it cannot be read or written.
            CorruptedError: nothing can be read.
        """
        raise BackendError(f"{cls.__name__} cannot copy what is sound of a damaged memory; restore it from a copy")

    @abstractmethod
    def compact(self) -> None:
        """Flush, and give space that is free inside the files back to the file system."""
