"""The ``lmdb`` backend: chunks on disk, searched exactly where they lie."""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from memcore.backend import Damage, PersistentBackend
from memcore.backend_checks import check_queries
from memcore.chunk import NO_CHUNK, ChunkBatch, SearchResult
from memcore.errors import (
    BackendError,
    ClosedError,
    ConfigError,
    ReadOnlyError,
    UnknownNamespaceError,
)
from memcore.footprint import Footprint
from memcore.storage import Storage
from memcore.uninterrupted import uninterrupted
from memcore_lmdb.arena import Arena
from memcore_lmdb.catalogue import Catalogue
from memcore_lmdb.checks import Checks
from memcore_lmdb.copying import clear_unfinished, copy_namespace
from memcore_lmdb.environment import Environment
from memcore_lmdb.folder import WRITER_LOCK, prepare_folder
from memcore_lmdb.footprint import footprint
from memcore_lmdb.format import RECORD, keys_from, name_key, unpack_name, unpack_named
from memcore_lmdb.held_vectors import HeldVectors
from memcore_lmdb.namespace import Namespace
from memcore_lmdb.opening import Writing
from memcore_lmdb.options import LmdbOptions
from memcore_lmdb.overlay import Overlay
from memcore_lmdb.payload import PayloadLayout
from memcore_lmdb.reading import read_chunks
from memcore_lmdb.salvage import salvage
from memcore_lmdb.search import search
from memcore_lmdb.storage import others_with, storage
from memcore_lmdb.verification import Inspection


class LmdbBackend(PersistentBackend):
    """Keeps chunks in one LMDB file, which one instance writes and any number read, in any process.

    What is stored, evicted or dropped lies in memory until ``flush`` commits all of it at once, or until it is more
    than ``write_buffer``. Beside that, ids are held in memory, and up to ``hold_vectors`` bytes of embeddings of small
    namespaces; all else is read where the file is mapped, so a memory may be larger than RAM. Search compares every
    vector and is exact. Tensors come back on the CPU and are copies.

    A ``flush`` that fails, for want of disk space for example, loses nothing: it can be tried again. So can ``close``,
    which then leaves the backend open.

    A call that changes something is not cut in half by Ctrl-C, which waits for its end.

    An instance belongs to the process that opened it: forked children must open their own. A lock for each folder and
    process lets one call in at a time, so an instance may be used from several threads.

    Args:
        options: :class:`LmdbOptions`.

    Raises:
        BackendError: the folder cannot be used, or another instance has it open for writing.
        CorruptedError: it holds no memory, or a damaged one, or one of another version.
    """

    Options = LmdbOptions
    thread_safe: ClassVar[bool] = True

    def __init__(self, options: object) -> None:
        if not isinstance(options, LmdbOptions):
            raise ConfigError(f"{type(self).__name__} takes LmdbOptions, got {type(options).__qualname__}")
        self._options = options
        self._pid = os.getpid()
        self._closed = False
        self._overlay = Overlay()
        self._arena = Arena(options.write_buffer)
        self._checks = Checks(options.verify)
        # Checksums that are always to be compared are those of the file.
        self._held = HeldVectors(0 if options.verify == "always" else options.hold_vectors)
        self._environment, release = _open(options)
        self._catalogue = Catalogue()
        # Without close() what was flushed is safe, and the folder must not stay locked.
        self._release = weakref.finalize(self, release)

    @classmethod
    def footprint(cls, options: object, like: ChunkBatch, chunks: int, namespaces: int) -> Footprint:
        """Return what chunks take: see :meth:`memcore.backend.MemoryBackend.footprint`."""
        assert isinstance(options, LmdbOptions)
        return footprint(options, like, chunks, namespaces)

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written."""
        return self._options.read_only

    def store(self, namespace: str, chunks: ChunkBatch) -> Tensor:
        """Add chunks: see :meth:`memcore.backend.MemoryBackend.store`."""
        with self._using(to_write=True):
            state = self._find(namespace) or Namespace.new(namespace, chunks, self._options.compression)
            state.check(chunks)
            lengths: list[int] = chunks.lengths.tolist()
            size = state.layout.nbytes(len(lengths), sum(lengths))
            if self._make_room(size):
                state = self._find(namespace) or state
            payloads = state.layout.encode(chunks, lengths, self._arena)
            ids = self._edit(namespace, state).stage(payloads, lengths, chunks.embeddings)
            self._overlay.nbytes += size
            return ids

    def retrieve(self, namespace: str, queries: Tensor, top_k: int) -> SearchResult:
        """Find chunks: see :meth:`memcore.backend.MemoryBackend.retrieve`."""
        with self._using(), self._environment.read() as txn:
            if top_k < 1:
                raise ConfigError(f"top_k must be at least 1, got {top_k}")
            found = self._find(namespace, txn)
            queries = check_queries(queries, None if found is None else found.record.shape.size).cpu()
            if found is None or not found.count or not queries.shape[0]:
                shape = (len(queries), top_k)
                return SearchResult(ids=torch.full(shape, NO_CHUNK), scores=torch.full(shape, -torch.inf))
            return search(txn, found, queries, top_k, self._checks, self._held)

    def fetch(self, namespace: str, ids: Tensor) -> ChunkBatch:
        """Return chunks, copied out of the file once: see :meth:`memcore.backend.MemoryBackend.fetch`.

        Raises:
            CorruptedError: a chunk is damaged; the message names it. The others can be fetched.
        """
        with self._using(), self._environment.read() as txn:
            return read_chunks(txn, self._existing(namespace, txn), ids, self._checks)

    def evict(self, namespace: str, ids: Tensor) -> None:
        """Remove chunks: see :meth:`memcore.backend.MemoryBackend.evict`."""
        with self._using(to_write=True):
            state = self._existing(namespace)
            state.rows(ids)
            self._edit(namespace, state).evict(ids)

    def drop(self, namespace: str) -> None:
        """Remove a namespace: see :meth:`memcore.backend.MemoryBackend.drop`."""
        with self._using(to_write=True):
            found = self._find(namespace)
            if found is None:
                return
            if found.record.number:
                self._overlay.dropped.append(found.record.number)
            self._overlay.namespaces[namespace] = None

    def ids(self, namespace: str) -> Tensor:
        """Return the ids stored: see :meth:`memcore.backend.MemoryBackend.ids`."""
        with self._using():
            found = self._find(namespace)
            return found.ids.clone() if found else torch.empty(0, dtype=torch.int64)

    def count(self, namespace: str) -> int:
        """Return how many chunks a namespace holds, 0 if there is none of that name."""
        with self._using():
            found = self._find(namespace)
            return found.count if found else 0

    def namespaces(self) -> list[str]:
        """Return the names of all namespaces, sorted."""
        with self._using(), self._environment.read() as txn:
            names = set(self._catalogue.records(txn, self._environment.file)) - self._overlay.namespaces.keys()
            return sorted(names | {name for name, state in self._overlay.namespaces.items() if state is not None})

    def nbytes(self, namespace: str | None = None) -> int:
        """Return the bytes of embeddings and payloads, of chunks in the file and of those that are to be written."""
        with self._using(), self._environment.read() as txn:
            if namespace is not None:
                found = self._find(namespace, txn)
                return found.nbytes() if found else 0
            staged = self._overlay.namespaces
            return sum(state.nbytes() for state in staged.values() if state is not None) + sum(
                PayloadLayout(record.shape, record.compression).nbytes(record.count, record.tokens)
                for name, record in self._catalogue.records(txn, self._environment.file).items()
                if name not in staged
            )

    def copy(self, source: str, target: str) -> None:
        """Copy a namespace, ids and all, inside of the file, and commit it: so it flushes, and takes little memory."""
        with self._using(to_write=True):
            if source == target:
                return
            self.flush()
            found = self._find(source)
            if found is None:
                self.drop(target)
            else:
                copied, replaced = copy_namespace(self._environment, found, target)
                if replaced is not None:
                    self._forget(replaced)
                self._catalogue.put(copied)

    def flush(self) -> None:
        """Commit everything so far, in one transaction.

        Raises:
            BackendError: disk or map are full; nothing is written, nothing is lost, and it can be tried again.
        """
        with self._using(), uninterrupted:
            if not self._overlay:
                return
            committed = self._environment.write(self._overlay.write, self._overlay.nbytes)
            for number in self._overlay.dropped:
                self._forget(number)
            self._overlay = Overlay()
            self._arena.reset()
            for namespace in committed:
                self._catalogue.put(namespace)

    def write_record(self, name: str, value: bytes) -> None:
        """Keep a value under a name, in place of what was there."""
        with self._using(to_write=True):
            self._make_room(len(value))
            self._overlay.records[name] = bytes(value)
            self._overlay.nbytes += len(value)

    def read_record(self, name: str) -> bytes | None:
        """Return the value under a name, None if there is none.

        Raises:
            CorruptedError: it is damaged.
        """
        with self._using(), self._environment.read() as txn:
            if name in self._overlay.records:
                return self._overlay.records[name]
            value = txn.get(name_key(RECORD, name))
            return None if value is None else unpack_named(value, f"record {name!r}")

    def drop_record(self, name: str) -> None:
        """Remove a record; do nothing if there is none."""
        with self._using(to_write=True), self._environment.read() as txn:
            records = self._overlay.records
            # It is not read, so that one that is damaged can be dropped, too.
            there = records[name] is not None if name in records else txn.get(name_key(RECORD, name)) is not None
            if there:
                records[name] = None

    def record_names(self) -> list[str]:
        """Return the names of all records, sorted."""
        with self._using(), self._environment.read() as txn:
            cursor = txn.cursor()
            names = {unpack_name(cursor.value()) for _ in keys_from(cursor, RECORD)} - self._overlay.records.keys()
            return sorted(names | {name for name, value in self._overlay.records.items() if value is not None})

    def disk_bytes(self) -> int:
        """Return the bytes of the file, whether in use or free inside of it."""
        with self._using():
            return self._environment.disk_bytes()

    def storage(self) -> Storage:
        """Return what the bytes of the file are: see :meth:`memcore.backend.PersistentBackend.storage`."""
        with self._using(), self._environment.snapshot() as snapshot, self._environment.read() as txn:
            records = self._catalogue.records(txn, self._environment.file)
            return storage(txn, records.values(), snapshot.meta, others_with(self._environment.file))

    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[Damage]:
        """Read everything that was committed: see :meth:`memcore.backend.PersistentBackend.verify`."""
        with self._using(), self._environment.snapshot() as snapshot:
            return Inspection(snapshot, progress).damage

    @classmethod
    def salvage(
        cls, options: object, target: Path | None = None, progress: Callable[[int, int], None] | None = None
    ) -> list[Damage]:
        """Copy what is sound: see :meth:`memcore.backend.PersistentBackend.salvage`."""
        if not isinstance(options, LmdbOptions):
            raise ConfigError(f"{cls.__name__} takes LmdbOptions, got {type(options).__qualname__}")
        return salvage(options.path, target, progress)

    def compact(self) -> None:
        """Flush, and write the file anew without what is free in it.

        Instances that have it open for reading, in any process, go over to the new file at their next call.

        Raises:
            BackendError: there is no room for both files; everything is as it was.
        """
        with self._using(to_write=True):
            self.flush()
            self._environment.compact()

    def close(self) -> None:
        """Flush and let go of the file. Calling it again does nothing; other calls raise ClosedError.

        Raises:
            BackendError: as in ``flush``; the backend is open still.
        """
        if os.getpid() == self._pid:
            with self._environment.lock:
                if not self._closed:
                    self.flush()
                    self._closed = True
        self._closed = True
        self._release()

    def _using(self, *, to_write: bool = False) -> _Turn:
        """Let nobody else in, and see that this instance may be used."""
        return _Turn(self, to_write)

    def _find(self, namespace: str, txn: Any = None) -> Namespace | None:
        if namespace in self._overlay.namespaces:
            return self._overlay.namespaces[namespace]
        if txn is not None:
            return self._catalogue.find(txn, namespace)
        with self._environment.read() as txn:
            return self._catalogue.find(txn, namespace)

    def _existing(self, namespace: str, txn: Any = None) -> Namespace:
        found = self._find(namespace, txn)
        if found is None:
            raise UnknownNamespaceError(f"no namespace {namespace!r} in {self._options.path}")
        return found

    def _edit(self, namespace: str, state: Namespace) -> Namespace:
        """Return the state of a namespace in the overlay, put there if it is not."""
        if self._overlay.namespaces.get(namespace) is not state:
            state = state.editable()
            self._overlay.namespaces[namespace] = state
        return state

    def _forget(self, number: int) -> None:
        """Let go of what is remembered of the namespace that had this number, which no other will have."""
        self._checks.forget(number)
        self._held.forget(number)

    def _make_room(self, size: int) -> bool:
        """Commit if so many bytes more would be too many to hold; return whether it did."""
        full = bool(self._overlay) and self._overlay.nbytes + size > self._options.write_buffer
        if full:
            self.flush()
        return full


class _Turn(AbstractContextManager[None]):
    """What :meth:`LmdbBackend._using` gives: a class, as generators take longer than many a call."""

    __slots__ = ("_backend", "_to_write")

    def __init__(self, backend: LmdbBackend, to_write: bool) -> None:
        self._backend = backend
        self._to_write = to_write

    def __enter__(self) -> None:
        backend = self._backend
        if os.getpid() != backend._pid:
            raise BackendError(
                f"this {type(backend).__name__} was opened in process {backend._pid} and is used in {os.getpid()}: "
                "LMDB must not be used across a fork; open the memory again here"
            )
        if self._to_write:
            uninterrupted.__enter__()
        backend._environment.lock.acquire()
        if backend._closed or (self._to_write and backend.read_only):
            self.__exit__(None, None, None)
            if backend._closed:
                raise ClosedError(f"{type(backend).__name__} was closed")
            raise ReadOnlyError(f"the memory in {backend._options.path} was opened with read_only=True")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._backend._environment.lock.release()
        if self._to_write:
            uninterrupted.__exit__(kind, error, traceback)


def _open(options: LmdbOptions) -> tuple[Environment, Callable[[], None]]:
    """Open the environment, locked against other writers, and return it with what lets go of both."""
    if options.read_only:
        environment = Environment.open(options.path, trusting=options.verify == "never")
        return environment, functools.partial(_let_go, environment, None, os.getpid())
    prepare_folder(options.path)
    lock = FileLock(options.path / WRITER_LOCK, thread_local=False)  # any thread may close
    try:
        lock.acquire(timeout=options.lock_timeout)
    except Timeout as error:
        raise BackendError(
            f"the memory in {options.path} is open for writing already, in this process or another; close it there, or "
            "open it here with read_only=True"
        ) from error
    except OSError as error:
        raise BackendError(
            f"cannot write to {options.path}: {error}; to read what is there, open it with read_only=True"
        ) from error
    try:
        writing = Writing(map_size=options.map_size, max_map_size=options.max_map_size, sync=options.sync)
        environment = Environment.open(options.path, writing, trusting=options.verify == "never")
    except BaseException:
        lock.release()
        raise
    release = functools.partial(_let_go, environment, lock, os.getpid())
    try:
        clear_unfinished(environment)
    except BaseException:
        release()
        raise
    return environment, release


def _let_go(environment: Environment, lock: FileLock | None, pid: int) -> None:
    if os.getpid() != pid:
        return  # of a forked child, which holds neither
    environment.close(writer=lock is not None)
    if lock is not None:
        lock.release()
