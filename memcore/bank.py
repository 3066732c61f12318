"""The memory bank: what a cache talks to. It counts uses, forgets on overflow and lets namespaces share chunks."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable
from threading import RLock
from time import perf_counter
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from memcore import events, usage_record
from memcore.backend import MemoryBackend, PersistentBackend
from memcore.backend_checks import check_ids
from memcore.bank_hooks import NO_HOOKS, Holdings, Hooks, holdings_of
from memcore.chunk import ChunkBatch
from memcore.errors import (
    ChunkShapeError,
    ClosedError,
    ConfigError,
    PluginError,
    ReadOnlyError,
    UnknownChunkError,
    UnknownNamespaceError,
)
from memcore.eviction import ChunkUsage, EvictionPolicy, problem_with_choice
from memcore.namespaces import Namespaces
from memcore.recall import Retrieved, recall
from memcore.records import Records
from memcore.shelves import TEMPORARY, fetch
from memcore.uninterrupted import uninterrupted
from memcore.view import View

P = ParamSpec("P")
T = TypeVar("T")


def _locked(method: Callable[Concatenate[MemoryBank, P], T]) -> Callable[Concatenate[MemoryBank, P], T]:
    @functools.wraps(method)
    def call(bank: MemoryBank, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with bank._lock, uninterrupted:
            bank._depth += 1
            try:
                if bank._depth == 1:
                    bank._drop_discarded()
                return method(bank, *args, **kwargs)
            finally:
                bank._depth -= 1

    return call


class MemoryBank:
    """The long-term memory of a cache: namespaces of chunks in a backend, with a capacity each.

    Ids are the bank's own. They grow in storing order and are never used again in a namespace, unless ``truncate``
    takes back that they were given; a fork keeps those of its source.

    ``fork`` copies no chunk: both sides go on reading the same ones, and what each adds is its own. What one side
    forgets goes for good once no other reads it.

    With a persistent backend ``flush`` makes everything durable, uses included, and every namespace has its own name
    there. Chunks that a backend already holds are there from the start. Namespaces whose names begin with
    ``~`` (``TEMPORARY``) are not kept. If the backend is read-only, temporary namespaces still work, in memory.

    A lock lets one call in at a time, from any thread, and Ctrl-C waits for its end. The bank owns its backend:
    ``close`` closes both.

    Attributes:
        records: named values of the bank's user, kept with the chunks.

    Args:
        backend: where chunks are kept.
        policy: what to forget when a namespace is over capacity and no hook decides.
        capacity: chunks a namespace may hold, at least 1; None for any number.
        hooks: whom to tell what happens.

    Raises:
        ConfigError: the capacity is less than 1.
    """

    def __init__(
        self, backend: MemoryBackend, policy: EvictionPolicy, *, capacity: int | None, hooks: Hooks = NO_HOOKS
    ) -> None:
        if capacity is not None and capacity < 1:
            raise ConfigError(f"the capacity of a memory bank must be at least 1 chunk, got {capacity}")
        self.backend = backend
        self.policy = policy
        self.capacity = capacity
        self._hooks = hooks
        self._closed = False
        self._lock = RLock()
        self._depth = 0  # calls under way, one inside of the other
        self._discarded: deque[str] = deque()
        self._namespaces = Namespaces(backend)
        self._shelves = self._namespaces.shelves
        self.records = Records(self.persistent, self._lock)
        hooks.opened(holdings_of(self))

    @property
    def closed(self) -> bool:
        """Whether the bank was closed."""
        return self._closed

    @property
    def persistent(self) -> PersistentBackend | None:
        """The backend, if what it holds outlives the process."""
        return self.backend if isinstance(self.backend, PersistentBackend) else None

    @property
    def read_only(self) -> bool:
        """Whether nothing can be kept."""
        return self._namespaces.read_only

    @_locked
    def store(self, namespace: str, chunks: ChunkBatch) -> Tensor:
        """Store chunks and, if that is over capacity, forget some: perhaps, if they are many, some of these.

        Returns:
            The ids of these chunks, ``[N]`` int64, ascending, evicted or not.

        Raises:
            BackendError: the backend refuses them; nothing has changed.
            ReadOnlyError: the backend is read-only and the namespace not temporary.
            PluginError: the hook or the policy chose what cannot be evicted; the chunks are stored and none is gone.
        """
        begun = perf_counter()
        with torch.inference_mode(False), torch.no_grad():
            self._check_writable(namespace)
            view = self._find(namespace)
            created = view is None
            view = View.empty() if view is None else view  # one that is empty counts as false
            shelf = self._shelves.open_for(view, namespace, chunks)
            backend_ids = shelf.backend.store(shelf.name, chunks)
            if created:
                self._namespaces.put(namespace, view)
            self._shelves.enter(shelf, view)
            self._namespaces.clock += 1
            ids = view.add(backend_ids, self._namespaces.clock)
            seconds = perf_counter() - begun
            if events.BANK_STORED.wanted:
                events.BANK_STORED.log(namespace=namespace, chunks=len(ids), count=len(view), seconds=seconds)
            self._hooks.stored(namespace, ids.clone(), chunks, count=len(view), seconds=seconds)
            if self.capacity is not None and len(view) > self.capacity:
                self._make_room(namespace, view, self.capacity)
            return ids

    @_locked
    def retrieve(
        self,
        namespace: str,
        queries: Tensor,
        top_k: int,
        *,
        candidates: int | None = None,
        rescore: Callable[[ChunkBatch], Tensor] | None = None,
    ) -> Retrieved | None:
        """Find and fetch the chunks that these queries together want most, and count them as used.

        Each query finds its best chunks, and :func:`memcore.selection.select_chunks` lets the queries vote. A
        namespace with no more than ``top_k`` chunks gives them all, without a search, whatever the queries are.

        Args:
            namespace: where to look.
            queries: ``[Q, E]`` float32.
            top_k: chunks wanted, at least 1.
            candidates: chunks each query votes for and, with ``rescore``, chunks that ``rescore`` chooses from;
                ``top_k`` or more. None for ``top_k``.
            rescore: gives better scores than the embeddings do, ``[N]`` for ``N`` chunks; the highest are taken. With
                no more than ``candidates`` chunks stored it sees all, without a search. Needs ``candidates``.

        Returns:
            ``top_k`` chunks, or fewer where fewer are stored or voted for; None if there are none.

        Raises:
            ConfigError: ``top_k`` or ``candidates`` is too small, or missing for ``rescore``.
            ChunkShapeError: the queries do not fit the chunks, or what ``rescore`` gave is not ``[N]``.
            BackendError: a query is NaN or infinite, or the backend failed.
        """
        begun = perf_counter()
        if top_k < 1:
            raise ConfigError(f"top_k must be at least 1, got {top_k}")
        if candidates is None and rescore is not None:
            raise ConfigError("rescore needs candidates, the number of chunks to choose from")
        width = top_k if candidates is None else candidates
        if width < top_k:
            raise ConfigError(f"candidates must be at least top_k = {top_k}, got {width}")
        view = self._find(namespace)
        if view is not None and self.read_only:
            with torch.inference_mode(False):
                self._shelves.miss_what_is_gone(view)
        if view is None or not len(view):
            return None
        rows, chunks, result = recall(view, queries, top_k, width, rescore)
        if not len(rows):
            return None
        with torch.inference_mode(False):
            self._namespaces.clock += 1
            view.use(rows, self._namespaces.clock)
        ids = view.ids[rows]
        seconds = perf_counter() - begun
        if events.BANK_RETRIEVED.wanted:
            searched = result is not None
            events.BANK_RETRIEVED.log(
                namespace=namespace, chunks=len(ids), count=len(view), searched=searched, seconds=seconds
            )
        self._hooks.retrieved(namespace, ids.clone(), chunks, result, count=len(view), seconds=seconds)
        return Retrieved(ids=ids, chunks=chunks)

    @_locked
    def fetch(self, namespace: str, ids: Tensor) -> ChunkBatch:
        """Return the chunks with these ids, in this order, where the backend keeps them; does not count as a use.

        Args:
            namespace: where they are stored.
            ids: ``[N]`` int64.

        Raises:
            UnknownNamespaceError: there is no such namespace.
            UnknownChunkError: an id is not there.
            ChunkShapeError: ``ids`` is not ``[N]`` int64.
        """
        ids = check_ids(ids)
        view = self._find(namespace)
        if view is None:
            raise UnknownNamespaceError(f"no namespace {namespace!r} in the memory bank")
        missing = ids[~torch.isin(ids, view.ids)].tolist()
        if missing:
            raise UnknownChunkError(f"no chunk with id {missing[0]} among the {len(view)} of namespace {namespace!r}")
        return fetch(view, torch.searchsorted(view.ids, ids))

    @_locked
    def fork(self, source: str, target: str) -> None:
        """Make ``target`` a namespace like ``source``, ids and uses included; what ``target`` held is dropped.

        Copies no chunk. A fork of nothing is nothing.

        Raises:
            ReadOnlyError: the backend is read-only and ``target`` not temporary.
        """
        view = self._find(source)
        if source == target:
            return
        if view is None:
            self.drop(target)
            return
        self._check_writable(target)
        replaced = self._find(target)
        with torch.inference_mode(False):
            self._namespaces.put(target, self._shelves.share(view))
        if replaced is not None:
            self._shelves.leave(replaced)

    @_locked
    def drop(self, namespace: str) -> None:
        """Forget a namespace; do nothing if there is none.

        Raises:
            ReadOnlyError: the backend is read-only and the namespace not temporary.
        """
        if self._find(namespace) is not None:
            self._check_writable(namespace)
        self._namespaces.drop(namespace)

    def discard(self, namespaces: Iterable[str]) -> None:
        """Forget namespaces as soon as no call is under way, at the latest at the next.

        For finalizers, which may run at any time, in the middle of another call too.
        """
        self._discarded.extend(namespaces)
        if self._lock.acquire(blocking=False):
            try:
                if not self._depth:
                    self._drop_discarded()
            finally:
                self._lock.release()

    @_locked
    def restore(self, namespace: str, chunks: ChunkBatch, usage: ChunkUsage, next_id: int) -> None:
        """Fill a namespace with what another bank told of one, ids and uses included; what it held is dropped.

        Args:
            namespace: what to fill.
            chunks: what :meth:`fetch` gave, ids ascending.
            usage: what :meth:`usage` told of them.
            next_id: what :meth:`next_id` told.

        Raises:
            BackendError: the backend refuses the chunks; nothing has changed.
            ChunkShapeError: ``usage`` is not of as many chunks, or not in order; nothing has changed.
            ReadOnlyError: the backend is read-only and the namespace not temporary.
        """
        if len(chunks) != usage.ids.numel():
            raise ChunkShapeError(f"{len(chunks)} chunks cannot be restored with the uses of {usage.ids.numel()}")
        try:
            usage_record.check_uses(usage.ids, (usage.last_used, usage.retrievals), next_id)
        except ValueError as error:
            raise ChunkShapeError(f"{len(chunks)} chunks cannot be restored with these uses: {error}") from error
        with torch.inference_mode(False), torch.no_grad():
            self._check_writable(namespace)
            replaced = self._find(namespace)
            view = View.empty()
            shelf = self._shelves.open_for(view, namespace, chunks)
            backend_ids = shelf.backend.store(shelf.name, chunks)
            self._namespaces.put(namespace, view)
            self._shelves.enter(shelf, view)
            if replaced is not None:
                self._shelves.leave(replaced)
            view.add(backend_ids, self._namespaces.clock)
            view.ids, view.next_id = usage.ids.clone(), next_id
            view.usage = torch.stack((usage.last_used, usage.retrievals))
            self._namespaces.clock = max([self._namespaces.clock, *usage.last_used.tolist()])

    @_locked
    def truncate(self, namespace: str, next_id: int) -> None:
        """Take back what was stored since :meth:`next_id` gave ``next_id``: the next chunk gets that id again.

        What was evicted meanwhile does not come back.

        Raises:
            ReadOnlyError: the backend is read-only and the namespace not temporary.
        """
        view = self._find(namespace)
        if view is not None and view.next_id > next_id:
            self._check_writable(namespace)
            with torch.inference_mode(False):
                later = view.ids >= next_id
                if bool(later.any()):
                    self._shelves.forget(view, later)
                view.next_id, view.changed = next_id, True

    @_locked
    def next_id(self, namespace: str) -> int:
        """Return the id that the next chunk stored will get, 0 in an unknown namespace."""
        view = self._find(namespace)
        return 0 if view is None else view.next_id

    @_locked
    def reload(self, namespace: str, next_id: int | None = None) -> None:
        """Look at a namespace anew, if the backend is read-only and another process may have written to it.

        Args:
            namespace: what to look at.
            next_id: show no chunks with this id or a larger one; None to show all that there are.
        """
        if not self.read_only or namespace.startswith(TEMPORARY):
            return
        self._namespaces.forget(namespace)
        view = self._find(namespace)
        if view is not None and next_id is not None:
            with torch.inference_mode(False):
                view.keep(view.ids < next_id)

    @_locked
    def count(self, namespace: str) -> int:
        """Return how many chunks a namespace holds, 0 if there is none of that name."""
        view = self._find(namespace)
        return 0 if view is None else len(view)

    @_locked
    def ids(self, namespace: str) -> Tensor:
        """Return the ids stored in a namespace: ``[N]`` int64, ascending; empty for an unknown namespace."""
        return self.usage(namespace).ids

    @_locked
    def usage(self, namespace: str) -> ChunkUsage:
        """Return what is known of each chunk; nothing for an unknown namespace.

        The clock of ``last_used`` ticks at every store and every retrieval of the bank.
        """
        return (self._find(namespace) or View.empty()).known()

    @_locked
    def namespaces(self) -> list[str]:
        """Return the names of all namespaces, sorted; also of those that a persistent backend brought along."""
        self._check_open()
        return self._namespaces.names()

    @_locked
    def nbytes(self, namespace: str | None = None) -> int:
        """Return the bytes of the shelves that a namespace reads, or of all; what is shared counts for each reader."""
        if namespace is None:
            self._check_open()
            return self.backend.nbytes() + (self._shelves.backend.nbytes() if self.read_only else 0)
        view = self._find(namespace) or View.empty()
        return sum(shelf.backend.nbytes(shelf.name) for shelf in view.parts)

    @_locked
    def holdings(self) -> Holdings:
        """Return what the backend holds; with one that is read-only, what is held in memory beside it, too."""
        self._check_open()
        backends = (self.backend, self._shelves.backend) if self.read_only else (self.backend,)
        chunks = sum(backend.count(name) for backend in backends for name in backend.namespaces())
        return Holdings(chunks=chunks, nbytes=self.nbytes())

    @_locked
    def flush(self) -> None:
        """Make everything so far durable, under the names that callers know it by, in one step of the backend."""
        self._check_open()
        self._namespaces.settle()

    @_locked
    def close(self) -> None:
        """Flush and close the backend. Calling it again does nothing; other calls raise ClosedError.

        Raises:
            BackendError: it cannot be flushed; the bank is open still, and closing can be tried again.
        """
        if self._closed:
            return
        self._namespaces.close()
        self._closed = True

    def _drop_discarded(self) -> None:
        while self._discarded and not self._closed:
            self.drop(self._discarded.popleft())

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the memory was closed, as memcore.unwrap(model) does; wrap the model again")

    def _check_writable(self, namespace: str) -> None:
        self._check_open()
        if self.read_only and not namespace.startswith(TEMPORARY):
            raise ReadOnlyError(f"namespace {namespace!r} cannot be changed: the backend was opened read-only")

    def _find(self, namespace: str) -> View | None:
        self._check_open()
        return self._namespaces.find(namespace)

    def _make_room(self, namespace: str, view: View, capacity: int) -> None:
        begun = perf_counter()
        usage = view.known()
        chosen: object = self._hooks.evict(namespace, usage, capacity)
        who = "the memcore_evict hook"
        if chosen is None:
            chosen = self.policy.select(view.known(), capacity)
            who = f"eviction policy {type(self.policy).__name__}"
        if problem := problem_with_choice(chosen, usage, capacity):
            raise PluginError(f"{who} {problem}")
        assert isinstance(chosen, Tensor)
        gone = torch.isin(view.ids, chosen.cpu())
        ids = view.ids[gone]
        self._shelves.forget(view, gone)
        seconds = perf_counter() - begun
        if events.BANK_EVICTED.wanted:
            events.BANK_EVICTED.log(
                namespace=namespace, chunks=len(ids), count=len(view), chosen_by=who, seconds=seconds
            )
        self._hooks.evicted(namespace, ids, count=len(view), seconds=seconds)
