"""The memory bank: what a cache talks to. It counts uses, forgets on overflow and lets namespaces share chunks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from threading import RLock
from typing import Concatenate, Final, ParamSpec, Protocol, TypeVar

import attrs
import torch
from torch import Tensor

from memcore.backend import MemoryBackend, PersistentBackend
from memcore.chunk import NO_CHUNK, ChunkBatch, SearchResult
from memcore.errors import ChunkShapeError, ClosedError, ConfigError, PluginError
from memcore.eviction import ChunkUsage, EvictionPolicy
from memcore.selection import select_chunks

P = ParamSpec("P")
T = TypeVar("T")


class Hooks(Protocol):
    """Whom the bank tells what happens. Calls must not raise: a watcher is no reason to stop generating."""

    def stored(self, namespace: str, ids: Tensor, chunks: ChunkBatch) -> None:
        """Chunks were stored."""

    def retrieved(self, namespace: str, ids: Tensor, result: SearchResult | None) -> None:
        """These chunks will be attended to; ``result`` is None if all candidates were taken without a search."""

    def evict(self, namespace: str, usage: ChunkUsage, capacity: int) -> Tensor | None:
        """Decide what goes, as :meth:`memcore.EvictionPolicy.select` does, or return None to leave it to the policy."""

    def evicted(self, namespace: str, ids: Tensor) -> None:
        """Chunks were dropped to make room."""


class _NoHooks:
    def stored(self, namespace: str, ids: Tensor, chunks: ChunkBatch) -> None:
        pass

    def retrieved(self, namespace: str, ids: Tensor, result: SearchResult | None) -> None:
        pass

    def evict(self, namespace: str, usage: ChunkUsage, capacity: int) -> Tensor | None:
        return None

    def evicted(self, namespace: str, ids: Tensor) -> None:
        pass


NO_HOOKS: Final[Hooks] = _NoHooks()
"""Hooks that nobody listens to."""


@attrs.frozen(eq=False, kw_only=True)
class Retrieved:
    """``M`` chunks to attend to, in document order: by ``chunks.starts``, the lower id first of equals.

    Attributes:
        ids: ``[M]`` int64 on the CPU.
        chunks: ``M`` chunks, where the backend keeps them.
    """

    ids: Tensor
    chunks: ChunkBatch

    def __len__(self) -> int:
        return len(self.chunks)


@attrs.define(eq=False)
class _Shelf:
    """A namespace of the backend and how many namespaces of the bank read it."""

    name: str
    readers: int = 0


@attrs.define(eq=False)
class _View:
    """A namespace of the bank: a shelf and what is known of each chunk on it.

    Ids outlive a copy of the shelf, in which the backend may give others, so both are kept, row by row.
    """

    shelf: _Shelf
    ids: Tensor  # [N] int64, ascending
    backend_ids: Tensor  # [N] int64, ascending
    usage: Tensor  # [2, capacity] int64: last use, retrievals
    next_id: int

    def __len__(self) -> int:
        return int(self.ids.numel())

    def add(self, backend_ids: Tensor, clock: int) -> Tensor:
        new = torch.arange(self.next_id, self.next_id + backend_ids.numel())
        total = len(self) + new.numel()
        if total > self.usage.shape[1]:
            grown = torch.zeros(2, max(total, 2 * self.usage.shape[1]), dtype=torch.int64)
            grown[:, : len(self)] = self.usage[:, : len(self)]
            self.usage = grown
        self.usage[0, len(self) : total] = clock
        self.usage[1, len(self) : total] = 0
        self.ids = torch.cat((self.ids, new))
        self.backend_ids = torch.cat((self.backend_ids, backend_ids.cpu()))
        self.next_id += new.numel()
        return new

    def keep(self, rows: Tensor) -> None:
        """Keep the rows where ``rows``, ``[N]`` bool, is true."""
        self.usage[:, : int(rows.sum())] = self.usage[:, : len(self)][:, rows]
        self.ids = self.ids[rows]
        self.backend_ids = self.backend_ids[rows]

    def known(self) -> ChunkUsage:
        last_used, retrievals = self.usage[:, : len(self)].clone()
        return ChunkUsage(ids=self.ids.clone(), last_used=last_used, retrievals=retrievals)


def _locked(method: Callable[Concatenate[MemoryBank, P], T]) -> Callable[Concatenate[MemoryBank, P], T]:
    @functools.wraps(method)
    def call(bank: MemoryBank, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with bank._lock:
            return method(bank, *args, **kwargs)

    return call


class MemoryBank:
    """The long-term memory of a cache: namespaces of chunks in a backend, with a capacity each.

    Ids are the bank's own. They grow in storing order and are never used again in a namespace, and a fork keeps those
    of its source. Chunks that a persistent backend already held are there from the start, unused as yet.

    ``fork`` shares the chunks until one side stores or evicts; only then does the backend copy them. A persistent
    backend must know every namespace by its own name, so ``flush`` and ``close`` settle there what forks left shared.

    A lock lets one call in at a time, as caches that are thrown away may drop their namespaces from any thread. The
    bank owns its backend: ``close`` closes both.

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
        self._views: dict[str, _View] = {}
        self._shelves: dict[str, _Shelf] = {}
        self._clock = 0
        self._closed = False
        self._lock = RLock()

    @property
    def closed(self) -> bool:
        """Whether the bank was closed."""
        return self._closed

    @_locked
    def store(self, namespace: str, chunks: ChunkBatch) -> Tensor:
        """Store chunks and, if that is over capacity, forget some: perhaps, if they are many, some of these.

        Returns:
            The ids of these chunks, ``[N]`` int64, ascending, evicted or not.

        Raises:
            BackendError: the backend refuses them; nothing has changed.
            PluginError: the hook or the policy chose what cannot be evicted; the chunks are stored and none is gone.
        """
        with torch.inference_mode(False), torch.no_grad():
            view = self._find(namespace)
            created = view is None
            if view is None:
                none = torch.empty(0, dtype=torch.int64)
                shelf = _Shelf(self._free_name(namespace))
                view = _View(shelf, none, none, torch.empty(2, 0, dtype=torch.int64), 0)
            self._own(namespace, view)
            backend_ids = self.backend.store(view.shelf.name, chunks)
            if created:
                self._put(namespace, view)
            self._clock += 1
            ids = view.add(backend_ids, self._clock)
            self._hooks.stored(namespace, ids.clone(), chunks)
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
        namespace with no more than ``top_k`` chunks gives them all, without a search.

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
        if top_k < 1:
            raise ConfigError(f"top_k must be at least 1, got {top_k}")
        if candidates is None and rescore is not None:
            raise ConfigError("rescore needs candidates, the number of chunks to choose from")
        width = top_k if candidates is None else candidates
        if width < top_k:
            raise ConfigError(f"candidates must be at least top_k = {top_k}, got {width}")
        view = self._find(namespace)
        if view is None or not len(view):
            return None

        result: SearchResult | None = None
        if len(view) <= (top_k if rescore is None else width):
            rows = torch.arange(len(view))
        else:
            result = self._search(view, queries, width)
            rows = torch.searchsorted(view.ids, select_chunks(result, top_k if rescore is None else width))
        chunks = self.backend.fetch(view.shelf.name, view.backend_ids[rows])
        order = torch.arange(len(rows))
        if rescore is not None and len(rows) > top_k:
            order = _best(rescore(chunks), rows, top_k)
        order = order[rows[order].argsort()]
        order = order[chunks.starts.cpu()[order].argsort(stable=True)]
        rows, chunks = rows[order], _pick(chunks, order)
        if not len(rows):
            return None

        with torch.inference_mode(False):
            self._clock += 1
            view.usage[0, rows] = self._clock
            view.usage[1, rows] += 1
        ids = view.ids[rows]
        self._hooks.retrieved(namespace, ids.clone(), result)
        return Retrieved(ids=ids, chunks=chunks)

    @_locked
    def fork(self, source: str, target: str) -> None:
        """Make ``target`` a namespace like ``source``, ids and uses included; what ``target`` held is dropped.

        Costs no copy of the chunks until one of the two stores or evicts. A fork of nothing is nothing.
        """
        view = self._find(source)
        if source == target:
            return
        if view is None:
            self.drop(target)
            return
        replaced = self._find(target)
        with torch.inference_mode(False):
            self._put(target, attrs.evolve(view, usage=view.usage.clone()))
        if replaced is not None:
            self._leave(replaced.shelf)

    @_locked
    def drop(self, namespace: str) -> None:
        """Forget a namespace; do nothing if there is none."""
        view = self._find(namespace)
        if view is not None:
            del self._views[namespace]
            self._leave(view.shelf)

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
        view = self._find(namespace)
        if view is None:
            return ChunkUsage(**dict.fromkeys(("ids", "last_used", "retrievals"), torch.empty(0, dtype=torch.int64)))
        return view.known()

    @_locked
    def namespaces(self) -> list[str]:
        """Return the names of all namespaces, sorted; also of those that a persistent backend brought along."""
        self._check_open()
        return sorted(self._views.keys() | (set(self.backend.namespaces()) - self._shelves.keys()))

    @_locked
    def nbytes(self, namespace: str | None = None) -> int:
        """Return the bytes that chunks take in the backend: of one namespace, or of all with what is shared once."""
        if namespace is None:
            self._check_open()
            return self.backend.nbytes()
        view = self._find(namespace)
        return 0 if view is None else self.backend.nbytes(view.shelf.name)

    @_locked
    def flush(self) -> None:
        """Make everything stored so far durable, under the names that callers know it by."""
        self._check_open()
        self._settle()
        if isinstance(self.backend, PersistentBackend):
            self.backend.flush()

    @_locked
    def close(self) -> None:
        """Flush and close the backend. Calling it again does nothing; other calls raise ClosedError."""
        if self._closed:
            return
        try:
            self._settle()
        finally:
            self._closed = True
            self._views.clear()
            self._shelves.clear()
            self.backend.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the memory bank was closed")

    def _find(self, namespace: str) -> _View | None:
        """Return the view of a namespace, made now if a persistent backend brought it along."""
        self._check_open()
        view = self._views.get(namespace)
        if view is not None or namespace in self._shelves:  # a shelf may outlive the namespace it was made for
            return view
        with torch.inference_mode(False):
            ids = self.backend.ids(namespace).cpu()
            if not ids.numel():
                return None
            usage = torch.zeros(2, ids.numel(), dtype=torch.int64)
            return self._put(namespace, _View(_Shelf(namespace), ids, ids, usage, int(ids[-1]) + 1))

    def _put(self, namespace: str, view: _View) -> _View:
        self._views[namespace] = view
        self._shelves[view.shelf.name] = view.shelf
        view.shelf.readers += 1
        return view

    def _leave(self, shelf: _Shelf) -> None:
        shelf.readers -= 1
        if not shelf.readers:
            self.backend.drop(shelf.name)
            del self._shelves[shelf.name]

    def _free_name(self, namespace: str) -> str:
        """Return a name for a new shelf: the namespace's own unless that is taken by a fork of it."""
        name, number = namespace, 0
        while name in self._shelves or (number and (name in self._views or self.backend.count(name))):
            number += 1
            name = f"{namespace}~{number}"
        return name

    def _own(self, namespace: str, view: _View) -> None:
        """Give a view a shelf of its own, so that it may be written to."""
        if view.shelf.readers > 1:
            self._move(view, self._free_name(namespace))

    def _move(self, view: _View, name: str) -> None:
        """Copy a view's chunks to a new shelf and leave the old one."""
        self.backend.copy(view.shelf.name, name)
        shelf = _Shelf(name, readers=1)
        left, view.shelf, view.backend_ids = view.shelf, shelf, self.backend.ids(name).cpu()
        self._shelves[name] = shelf
        self._leave(left)

    def _settle(self) -> None:
        """Move every view to the shelf of its own name, if the backend outlives the bank."""
        if not isinstance(self.backend, PersistentBackend):
            return
        while misplaced := {name: view for name, view in list(self._views.items()) if view.shelf.name != name}:
            free = next((name for name in misplaced if name not in self._shelves), None)
            if free is not None:
                self._move(misplaced[free], free)
            else:
                # All names are taken by shelves that others read, in a ring. Moving one reader away opens it.
                taken = next(iter(misplaced))
                reader = next(view for view in misplaced.values() if view.shelf.name == taken)
                self._move(reader, self._free_name(taken))

    def _search(self, view: _View, queries: Tensor, top_k: int) -> SearchResult:
        """Search with the backend and put the bank's ids for the backend's."""
        result = self.backend.retrieve(view.shelf.name, queries, top_k)
        found = result.ids.cpu()
        rows = torch.searchsorted(view.backend_ids, found).clamp_(max=len(view) - 1)
        ids = torch.where(found == NO_CHUNK, found, view.ids[rows])
        return SearchResult(ids=ids, scores=result.scores.cpu())

    def _make_room(self, namespace: str, view: _View, capacity: int) -> None:
        chosen = self._hooks.evict(namespace, view.known(), capacity)
        who = "the memcore_evict hook"
        if chosen is None:
            chosen = self.policy.select(view.known(), capacity)
            who = f"eviction policy {type(self.policy).__name__}"
        gone = _checked(chosen, view.ids, len(view) - capacity, who)
        self._own(namespace, view)
        self.backend.evict(view.shelf.name, view.backend_ids[gone])
        ids = view.ids[gone]
        view.keep(~gone)
        self._hooks.evicted(namespace, ids)


def _checked(chosen: object, ids: Tensor, at_least: int, who: str) -> Tensor:
    """Return which of ``ids`` are chosen, ``[N]`` bool, or raise PluginError if the choice will not do."""
    if not isinstance(chosen, Tensor) or chosen.ndim != 1 or chosen.dtype != torch.int64:
        given = f"{chosen.dtype} {list(chosen.shape)}" if isinstance(chosen, Tensor) else type(chosen).__name__
        raise PluginError(f"{who} must return int64 [M], got {given}")
    chosen = chosen.cpu()
    gone = torch.isin(ids, chosen)
    if int(gone.sum()) != chosen.numel():
        raise PluginError(f"{who} chose ids that are not stored, or the same twice: {chosen.tolist()}")
    if chosen.numel() < at_least:
        raise PluginError(f"{who} chose {chosen.numel()} chunks to drop where at least {at_least} must go")
    return gone


def _best(scores: Tensor, rows: Tensor, top_k: int) -> Tensor:
    """Return the places of the ``top_k`` highest scores, the older chunk first of equals; NaN is lowest."""
    if scores.shape != rows.shape:
        raise ChunkShapeError(f"rescore must return {list(rows.shape)} scores, got {list(scores.shape)}")
    scores = scores.detach().cpu().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    by_age = rows.argsort()
    return by_age[scores[by_age].argsort(descending=True, stable=True)[:top_k]]


def _pick(chunks: ChunkBatch, places: Tensor) -> ChunkBatch:
    """Return the chunks at these places, in this order."""
    if torch.equal(places, torch.arange(len(chunks))):
        return chunks
    places = places.to(chunks.keys.device)
    return ChunkBatch(**{name: tensor[places] for name, tensor in attrs.asdict(chunks, recurse=False).items()})
