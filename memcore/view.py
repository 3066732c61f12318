"""What a namespace of the bank is: a view of shelves, so that copies of a memory share what they have in common."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import torch
from torch import Tensor

from memcore.backend import MemoryBackend
from memcore.eviction import ChunkUsage
from memcore.search_memo import SearchMemo


@attrs.define(eq=False)
class Shelf:
    """A namespace of a backend.

    Attributes:
        backend: the backend.
        name: the namespace's name there.
        writer: the view that may add to it, once there is one.
        readers: the views that read it.
        ragged: whether it may hold chunks that some reader does not show.
    """

    backend: MemoryBackend
    name: str
    writer: View | None = attrs.field(default=None, repr=False)
    readers: set[View] = attrs.field(factory=set, repr=False)
    ragged: bool = False


@attrs.define(eq=False)
class View:
    """A namespace of the bank: which chunks it holds, in storing order, where they lie, and how they were used.

    A view knows its chunks one by one, so a shelf may hold more than a view of it shows: what its writer added after
    the view was made, or what the view has forgotten while another still reads it.

    Attributes:
        parts: the shelves, oldest first; chunks are only ever added to the last.
        ids: ``[N]`` int64, ascending: the bank's ids.
        part: ``[N]`` int64, ascending: on which of ``parts`` each chunk lies.
        backend_ids: ``[N]`` int64, ascending in each part: the ids there.
        usage: ``[2, capacity]`` int64: last use and retrievals, of the first ``N`` columns.
        next_id: the id that the next chunk gets.
        changed: whether anything changed since its record was written.
        memo: what was found in it last, as it is now.
    """

    parts: list[Shelf] = attrs.field(repr=False)
    ids: Tensor
    part: Tensor
    backend_ids: Tensor
    usage: Tensor
    next_id: int
    changed: bool = True
    memo: SearchMemo = attrs.field(factory=SearchMemo, repr=False)

    @classmethod
    def empty(cls) -> View:
        """Return a view of nothing."""
        none = torch.empty(0, dtype=torch.int64)
        return cls([], none, none, none, torch.empty(2, 0, dtype=torch.int64), 0)

    def __len__(self) -> int:
        return int(self.ids.numel())

    def twin(self) -> View:
        """Return a view of the same chunks, with uses of its own; the shelves do not know it yet."""
        return attrs.evolve(self, parts=list(self.parts), usage=self.usage.clone(), changed=True, memo=SearchMemo())

    def span(self, part: int) -> tuple[int, int]:
        """Return the first row of a part and the one after its last."""
        begin, end = torch.searchsorted(self.part, torch.tensor([part, part + 1])).tolist()
        return begin, end

    def hidden(self, part: int) -> int:
        """Return how many chunks lie on a part's shelf that this view does not show."""
        shelf = self.parts[part]
        begin, end = self.span(part)
        return max(0, shelf.backend.count(shelf.name) - (end - begin)) if shelf.ragged else 0

    def add(self, backend_ids: Tensor, clock: int) -> Tensor:
        """Add chunks that were just stored on the last part, and return their ids."""
        new = torch.arange(self.next_id, self.next_id + backend_ids.numel())
        total = len(self) + new.numel()
        if total > self.usage.shape[1]:
            grown = torch.zeros(2, max(total, 2 * self.usage.shape[1]), dtype=torch.int64)
            grown[:, : len(self)] = self.usage[:, : len(self)]
            self.usage = grown
        self.usage[0, len(self) : total] = clock
        self.usage[1, len(self) : total] = 0
        self.ids = torch.cat((self.ids, new))
        self.part = torch.cat((self.part, torch.full_like(new, len(self.parts) - 1)))
        self.backend_ids = torch.cat((self.backend_ids, backend_ids.cpu()))
        self.next_id += new.numel()
        self.changed = True
        self.memo.clear()
        return new

    def keep(self, rows: Tensor) -> None:
        """Keep the rows where ``rows``, ``[N]`` bool, is true."""
        self.usage[:, : int(rows.sum())] = self.usage[:, : len(self)][:, rows]
        self.ids, self.part, self.backend_ids = self.ids[rows], self.part[rows], self.backend_ids[rows]
        self.changed = True
        self.memo.clear()

    def use(self, rows: Tensor, clock: int) -> None:
        """Count these rows, ``[M]`` int64, as retrieved once more."""
        self.usage[0, rows] = clock
        self.usage[1, rows] += 1
        self.changed = True

    def known(self) -> ChunkUsage:
        """Return what is known of each chunk."""
        last_used, retrievals = self.usage[:, : len(self)].clone()
        return ChunkUsage(ids=self.ids.clone(), last_used=last_used, retrievals=retrievals)

    def by_part(self, rows: Tensor) -> Iterator[tuple[Shelf, Tensor]]:
        """Yield each shelf that holds some of ``rows``, ``[M]`` int64, and their places in ``rows``."""
        part = self.part[rows]
        for index, shelf in enumerate(self.parts):
            places = (part == index).nonzero().flatten()
            if places.numel():
                yield shelf, places
