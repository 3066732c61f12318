"""Room for rows of tensors that stay where they were put: what a table keeps its payloads in."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Final

import torch
from torch import Tensor

from memcore.reserved import reserve, takes_memory_late

_BLOCK_BYTES: Final = 1 << 26
"""Size of a block, 64 MB: enough that most fetches find all in one or two."""


class Slots:
    """Rows of several columns, each row in a numbered slot of its own until it is freed.

    Payloads are large, so they are not moved: neither to close the gaps that removed rows leave, which the next rows
    fill, nor to make room for more, for which there are blocks. Only where memory is taken before it is written to does
    the first block begin small and double until it is full size.

    Args:
        device: where the rows live.
        by_token: columns whose dimension 2 is tokens, which is as wide as the longest row ever added.
    """

    def __init__(self, device: torch.device, by_token: Collection[str]) -> None:
        self.device = device
        self.width = 0
        self._by_token = by_token
        self._blocks: list[dict[str, Tensor]] = []
        self._per_block = 0
        self._capacity = 0
        self._used = 0  # slots handed out or free again; those behind are fresh
        self._free = torch.empty(0, dtype=torch.int64)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in all columns, 0 before there was room for any."""
        return sum(column[:1].nbytes for column in self._blocks[0].values()) if self._blocks else 0

    def columns(self) -> dict[str, Tensor]:
        """Return the first block, which shows dtypes and, except for dimension 0, shapes."""
        return self._blocks[0] if self._blocks else {}

    def with_room(self, rows: Mapping[str, Tensor]) -> Slots:
        """Return slots with the same rows and room for these, so that ``put`` cannot fail: itself or what replaces it.

        Args:
            rows: as for ``put``.
        """
        width, count = self.width, 0
        for name, row in rows.items():
            count = row.shape[0]
            if name in self._by_token and row.shape[2] > width:
                width = row.shape[2]
        wanted = max(1, self._used + max(0, count - self._free.shape[0]))
        if width == self.width and wanted <= self._capacity:
            return self
        roomy = Slots(self.device, self._by_token)
        row_bytes = sum(row.shape[1:].numel() * row.itemsize for row in rows.values())
        roomy.width, roomy._used, roomy._free = width, self._used, self._free
        roomy._per_block = self._per_block or max(1, _BLOCK_BYTES // max(1, row_bytes))
        first = min(self._capacity, roomy._per_block)
        if wanted > first:
            first = roomy._per_block
            if not takes_memory_late(self.device):
                first = min(first, max(wanted, 2 * self._capacity))
        sizes = [first] + [roomy._per_block] * (-(-max(wanted, self._capacity) // roomy._per_block) - 1)
        roomy._capacity = sum(sizes)
        for place, size in enumerate(sizes):
            old = self._blocks[place] if place < len(self._blocks) else {}
            as_it_is = old and width == self.width and len(next(iter(old.values()))) == size
            roomy._blocks.append(old if as_it_is else self._resized(old, rows, size, width))
        return roomy

    def put(self, rows: Mapping[str, Tensor]) -> Tensor:
        """Add rows for which there is room.

        Args:
            rows: ``N`` rows of every column, on any device; columns by token may be narrower than ``width`` and are
                filled up with 0.

        Returns:
            Their slots, ``[N]`` int64 on the CPU.
        """
        count = next(iter(rows.values())).shape[0]
        again, done = self._free, 0
        if again.shape[0]:
            again, self._free = again[:count], again[count:]
            done = again.shape[0]
            for part, block, local in self._runs(again):
                self._write(block, local.to(self.device), rows, part)
        end = self._used + count - done
        fresh = torch.arange(self._used, end)
        while self._used < end:
            number, low = divmod(self._used, self._per_block)
            length = min(end - self._used, self._per_block - low)
            self._write(self._blocks[number], slice(low, low + length), rows, slice(done, done + length))
            self._used += length
            done += length
        return torch.cat((again, fresh)) if again.shape[0] else fresh

    def take(self, slots: Tensor, *, pinned: bool = False) -> dict[str, Tensor]:
        """Copy out the rows in these slots, ``[N]`` int64 on the CPU, in this order, repeats allowed.

        Args:
            slots: where the rows are.
            pinned: return them in page-locked memory.
        """
        taken = {
            name: torch.empty(
                (len(slots), *column.shape[1:]), dtype=column.dtype, device=self.device, pin_memory=pinned
            )
            for name, column in self.columns().items()
        }
        for part, block, local in self._runs(slots):
            index = local.to(self.device)
            for name, column in block.items():
                torch.index_select(column, 0, index, out=taken[name][part])
        return taken

    def free(self, slots: Tensor) -> None:
        """Give these slots, ``[N]`` int64 on the CPU without repeats, to the rows that come next."""
        self._free = torch.cat((self._free, slots)).sort().values

    def _runs(self, slots: Tensor) -> Iterator[tuple[slice, dict[str, Tensor], Tensor]]:
        """Divide slots into runs in one block: yield their places, the block, and the slots counted from its start."""
        if not len(slots):
            return
        if len(self._blocks) == 1:
            yield slice(0, len(slots)), self._blocks[0], slots
            return
        numbers, counts = torch.unique_consecutive(slots // self._per_block, return_counts=True)
        first = 0
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            part = slice(first, first + count)
            yield part, self._blocks[number], slots[part] - number * self._per_block
            first += count

    def _write(
        self, block: Mapping[str, Tensor], where: slice | Tensor, rows: Mapping[str, Tensor], part: slice
    ) -> None:
        """Copy a part of the rows to places of a block and fill up what is narrower."""
        for name, row in rows.items():
            column = block[name]
            if part.stop - part.start < row.shape[0]:
                row = row[part]
            if name in self._by_token and row.shape[2] < self.width:
                column[where, :, row.shape[2] :] = 0
                column = column[:, :, : row.shape[2]]
            if isinstance(where, slice):
                column[where].copy_(row)
            else:
                column.index_copy_(0, where, row.to(self.device))

    def _resized(
        self, old: Mapping[str, Tensor], like: Mapping[str, Tensor], count: int, width: int
    ) -> dict[str, Tensor]:
        """Return a block of ``count`` rows of ``width`` tokens with what is in ``old``."""
        block = {}
        for name, row in like.items():
            shape = [count, *row.shape[1:]]
            if name in self._by_token:
                shape[2] = width
            column = reserve(shape, row.dtype, self.device)
            if old:
                room = column[: len(old[name])]
                if name in self._by_token and old[name].shape[2] < width:
                    room.narrow(2, old[name].shape[2], width - old[name].shape[2]).zero_()
                    room = room.narrow(2, 0, old[name].shape[2])
                room.copy_(old[name])
            block[name] = column
        return block
