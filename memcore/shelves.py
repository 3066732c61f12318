"""Where chunks lie in the backends, who reads them, and how they are found there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs
import torch
from torch import Tensor

from memcore.backend import MemoryBackend
from memcore.chunk import NO_CHUNK, ChunkBatch, SearchResult
from memcore.chunk_table import pad_tokens
from memcore.errors import ChunkShapeError, UnknownNamespaceError
from memcore.selection import pick
from memcore.view import Shelf, View

TEMPORARY: Final = "~"
"""Begins the names of namespaces that are not kept: what a bank finds of them in a persistent backend, it drops."""

_MOST_PARTS: Final = 8
"""Shelves a view may read; when it needs one more, all but the first are laid together."""

_BATCH: Final = 256
"""Chunks moved at a time from shelf to shelf."""


class Shelves:
    """The shelves of one backend, those that can be written to.

    A shelf lives as long as a view reads it. It has one writer at most; to the other readers, what the writer adds is
    not there, and what one of them forgets stays for the others.

    Args:
        backend: where new chunks go.
    """

    def __init__(self, backend: MemoryBackend) -> None:
        self.backend = backend
        self._shelves: dict[str, Shelf] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._shelves

    def names(self) -> set[str]:
        """Return the names of all shelves."""
        return set(self._shelves)

    def enter(self, shelf: Shelf, view: View) -> None:
        """Let a view write to a shelf, as one more part of it if it is none yet."""
        if not view.parts or view.parts[-1] is not shelf:
            view.parts.append(shelf)
        self._shelves[shelf.name] = shelf
        shelf.readers.add(view)
        shelf.writer = view
        shelf.ragged |= len(shelf.readers) > 1

    def share(self, view: View) -> View:
        """Return another view of the same chunks."""
        twin = view.twin()
        for shelf in twin.parts:
            shelf.readers.add(twin)
        return twin

    def open_for(self, view: View, namespace: str, chunks: ChunkBatch) -> Shelf:
        """Return the shelf that new chunks of a view go to: its last if it may write there, or one to :meth:`enter`.

        Raises:
            ChunkShapeError: it is another, and they do not fit what the view holds, which no backend would see.
        """
        if view.parts:
            last = view.parts[-1]
            if last.backend is self.backend and (last.writer is view or len(last.readers) == 1):
                return last
            _check_fit(view, namespace, chunks)
        if len(view.parts) >= _MOST_PARTS:
            self.lay_together(view, self.free_name(namespace))
            return view.parts[-1]
        return Shelf(self.backend, self.free_name(namespace))

    def free_name(self, namespace: str) -> str:
        """Return a name for a new shelf: the namespace's own unless that is taken by another that reads it."""
        name, number = namespace, 0
        while name in self._shelves or (number and self.backend.count(name)):
            number += 1
            name = f"{TEMPORARY}{namespace}~{number}"
        return name

    def lay_together(self, view: View, name: str, *, first: int = 1) -> None:
        """Copy what a view reads from its parts, from ``first`` on, to one new shelf."""
        shelf = Shelf(self.backend, name, writer=view, readers={view})
        begin = view.span(first)[0] if first < len(view.parts) else len(view)
        whole = first == 0 and len(view.parts) == 1 and not view.hidden(0) and view.parts[0].backend is self.backend
        if whole:
            self.backend.copy(view.parts[0].name, name)
            new = self.backend.ids(name).cpu()
        else:
            rows = torch.arange(begin, len(view)).split(_BATCH)
            try:
                new = torch.cat(
                    [torch.empty(0, dtype=torch.int64)]
                    + [self.backend.store(name, fetch(view, some)).cpu() for some in rows if some.numel()]
                )
            except BaseException:
                self.backend.drop(name)
                raise
        left, view.parts = view.parts[first:], [*view.parts[:first], shelf]
        view.backend_ids = torch.cat((view.backend_ids[:begin], new))
        view.part = view.part.clamp(max=first)
        self._shelves[name] = shelf
        self.leave(view, left)

    def settle(self, named: Mapping[str, View]) -> None:
        """Move every view to a shelf of its own that has its name, and let no other shelf have a name to be kept."""
        for name in self._shelves.keys() - named.keys():
            if not name.startswith(TEMPORARY):  # of a namespace that is gone, and still read
                self._move_readers(name)
        while misplaced := [name for name, view in named.items() if _is_misplaced(name, view)]:
            free = next((name for name in misplaced if name not in self._shelves), None)
            if free is None:  # all are read by others, perhaps in a ring, which this opens
                self._move_readers(misplaced[0])
            else:
                self.lay_together(named[free], free, first=0)

    def _move_readers(self, name: str) -> None:
        """Empty a shelf by giving its readers copies of what they read."""
        for reader in list(self._shelves[name].readers):
            self.lay_together(reader, self.free_name(f"{TEMPORARY}{name}"), first=0)

    def leave(self, view: View, parts: list[Shelf] | None = None) -> None:
        """Let a view go from shelves, and with it the chunks that nobody else knows."""
        for shelf in view.parts if parts is None else parts:
            shelf.readers.discard(view)
            if shelf.writer is view:
                shelf.writer = None
            if shelf.backend is not self.backend:
                continue
            if not shelf.readers:
                shelf.backend.drop(shelf.name)
                del self._shelves[shelf.name]
            elif len(shelf.readers) == 1 and shelf.ragged:
                (reader,) = shelf.readers
                begin, end = reader.span(reader.parts.index(shelf))
                held = shelf.backend.ids(shelf.name).cpu()
                shelf.backend.evict(shelf.name, held[~torch.isin(held, reader.backend_ids[begin:end])])
                shelf.ragged = False

    def forget(self, view: View, gone: Tensor) -> None:
        """Take rows, ``[N]`` bool, from a view, and from the shelves that only it reads."""
        rows = gone.nonzero().flatten()
        for shelf, places in view.by_part(rows):
            if len(shelf.readers) == 1 and shelf.backend is self.backend:
                shelf.backend.evict(shelf.name, view.backend_ids[rows[places]])
            else:
                shelf.ragged = True
        view.keep(~gone)

    def miss_what_is_gone(self, view: View) -> None:
        """Take from a view what another process has evicted from shelves that can only be read."""
        for part, shelf in enumerate(view.parts):
            if shelf.backend is self.backend:
                continue
            begin, end = view.span(part)
            known, held = view.backend_ids[begin:end], shelf.backend.ids(shelf.name).cpu()
            if not torch.equal(known, held):
                there = torch.ones(len(view), dtype=torch.bool)
                there[begin:end] = torch.isin(known, held)
                view.keep(there)


def _is_misplaced(name: str, view: View) -> bool:
    return bool(view.parts) and [shelf.name for shelf in view.parts] != [name]


def _check_fit(view: View, namespace: str, chunks: ChunkBatch) -> None:
    try:
        held = fetch(view, torch.empty(0, dtype=torch.int64))
    except UnknownNamespaceError:  # another process has dropped what is only read here
        return
    for name in ("keys", "values", "embeddings"):
        new, old = getattr(chunks, name), getattr(held, name)
        sizes = [[size for dim, size in enumerate(each.shape) if dim in (1, each.ndim - 1)] for each in (new, old)]
        if sizes[0] != sizes[1] or new.dtype != old.dtype:  # the number of chunks and of tokens is free
            raise ChunkShapeError(
                f"{name} {new.dtype} {list(new.shape)} do not fit namespace {namespace!r}, which holds {old.dtype} "
                f"{[len(view), *old.shape[1:]]}"
            )


def fetch(view: View, rows: Tensor) -> ChunkBatch:
    """Return the chunks of these rows, ``[M]`` int64, in this order."""
    found = [
        (places, shelf.backend.fetch(shelf.name, view.backend_ids[rows[places]]))
        for shelf, places in view.by_part(rows)
    ]
    if not found:  # no rows: any shelf knows the shapes
        shelf = view.parts[0]
        return shelf.backend.fetch(shelf.name, rows)
    if len(found) == 1:
        return found[0][1]
    width = max(chunks.keys.shape[2] for _, chunks in found)
    device = found[0][1].keys.device
    order = torch.cat([places for places, _ in found]).argsort()
    batches = [attrs.asdict(pad_tokens(chunks, width), recurse=False) for _, chunks in found]
    columns = {name: torch.cat([batch[name].to(device) for batch in batches]) for name in batches[0]}
    return pick(ChunkBatch(**columns), order)


def search(view: View, queries: Tensor, top_k: int) -> SearchResult:
    """Search every shelf, and put the bank's ids for the backend's. Ids and scores are on the CPU."""
    found = []
    for part, shelf in enumerate(view.parts):
        begin, end = view.span(part)
        if begin == end:
            continue
        # As many more as are hidden: that many of the best may not be ours.
        result = shelf.backend.retrieve(shelf.name, queries, top_k + view.hidden(part))
        known = view.backend_ids[begin:end]
        ids = result.ids.cpu()
        rows = torch.searchsorted(known, ids).clamp_(max=end - begin - 1)
        ours = (known[rows] == ids) & (ids != NO_CHUNK)
        found.append(
            (
                torch.where(ours, view.ids[begin + rows], NO_CHUNK),
                torch.where(ours, result.scores.cpu(), -torch.inf),
            )
        )
    ids, scores = (torch.cat(tensors, dim=1) for tensors in zip(*found, strict=True))
    if ids.shape[1] > top_k:
        best = scores.topk(top_k, dim=1)
        return SearchResult(ids=ids.gather(1, best.indices), scores=best.values)
    return SearchResult(ids=ids, scores=scores)
