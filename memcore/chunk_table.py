"""Chunks of one namespace in memory, in growable columns: what an in-memory backend keeps beside its search index."""

from __future__ import annotations

from typing import Final, Self

import attrs
import torch
from torch import Tensor

from memcore.chunk import UNKNOWN_TOKEN, ChunkBatch
from memcore.errors import BackendError, ChunkShapeError, UnknownChunkError

_COLUMNS: Final = tuple(field.name for field in attrs.fields(ChunkBatch))
_BY_TOKEN: Final = ("keys", "values", "token_ids")


def pad_tokens(chunks: ChunkBatch, width: int) -> ChunkBatch:
    """Return the chunks padded at the end to ``width`` tokens, or as they are if they have that many.

    Args:
        chunks: ``N`` chunks of ``C`` tokens, ``C <= width``.
        width: the ``C`` wanted. Keys and values are padded with 0, token ids with ``UNKNOWN_TOKEN``.
    """
    missing = width - chunks.keys.shape[2]
    if not missing:
        return chunks
    return attrs.evolve(
        chunks,
        keys=torch.nn.functional.pad(chunks.keys, (0, 0, 0, missing)),
        values=torch.nn.functional.pad(chunks.values, (0, 0, 0, missing)),
        token_ids=torch.nn.functional.pad(chunks.token_ids, (0, missing), value=UNKNOWN_TOKEN),
    )


class ChunkTable:
    """``N`` chunks in the order they came, one row each.

    Every field of :class:`ChunkBatch` is one contiguous tensor whose capacity doubles when it is full, so adding is
    cheap on average and the embeddings can be searched without gathering them. Removing chunks closes the gaps. Rows
    therefore move; ids do not, and are never given twice.

    Rows are as wide as the longest chunk ever added; shorter ones are padded at the end.

    Args:
        device: where the columns live. Ids stay on the CPU.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._columns: dict[str, Tensor] = {}
        self._ids = torch.empty(0, dtype=torch.int64)
        self._next_id = 0

    def __len__(self) -> int:
        return int(self._ids.numel())

    @property
    def ids(self) -> Tensor:
        """``[N]`` int64 on the CPU, ascending: the id of each row. Not to be written to."""
        return self._ids

    @property
    def embeddings(self) -> Tensor:
        """``[N, V, E]`` float32 on ``device``: the rows' embeddings, a view that the next change makes stale.

        Raises:
            BackendError: nothing was ever added, so ``V`` and ``E`` are unknown.
        """
        if not self._columns:
            raise BackendError("a table without chunks has no embeddings")
        return self._columns["embeddings"][: len(self)]

    @property
    def nbytes(self) -> int:
        """Bytes of the chunks held, without the room kept free for more."""
        return sum(len(self) * column[:1].nbytes for column in self._columns.values() if len(column))

    def add(self, chunks: ChunkBatch) -> Tensor:
        """Add ``N`` chunks at the end, as detached copies.

        Returns:
            Their new ids, ``[N]`` int64 on the CPU, ascending.

        Raises:
            ChunkShapeError: they do not fit the chunks that came before.
            BackendError: an embedding is NaN or infinite.
        """
        self._check(chunks)
        count, total = len(chunks), len(self) + len(chunks)
        # Rows made in inference mode could never be written to or used in training outside of it.
        with torch.inference_mode(False), torch.no_grad():
            width = max(chunks.keys.shape[2], self._columns["keys"].shape[2] if self._columns else 0)
            self._reserve(chunks, total, width)
            padded = pad_tokens(chunks, width)
            for name, column in self._columns.items():
                column[len(self) : total].copy_(getattr(padded, name))
            new = torch.arange(self._next_id, self._next_id + count)
            self._ids = torch.cat((self._ids, new))
        self._next_id += count
        return new.clone()

    def rows(self, ids: Tensor) -> Tensor:
        """Return the row of each id: ``[N]`` int64 on the CPU.

        Raises:
            ChunkShapeError: ``ids`` is not ``[N]`` int64.
            UnknownChunkError: an id is not here; the message names it.
        """
        if ids.ndim != 1 or ids.dtype != torch.int64:
            raise ChunkShapeError(f"chunk ids must be int64 [N], got {ids.dtype} {list(ids.shape)}")
        ids = ids.cpu()
        rows = torch.searchsorted(self._ids, ids)
        known = rows < len(self)
        known[known.clone()] = self._ids[rows[known]] == ids[known]
        if not bool(known.all()):
            missing = sorted(set(ids[~known].tolist()))
            shown = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
            raise UnknownChunkError(f"no chunk with id {shown} among the {len(self)} stored")
        return rows

    def take(self, ids: Tensor) -> ChunkBatch:
        """Copy out the chunks with these ids, in this order, repeats allowed; on ``device``.

        Raises:
            ChunkShapeError: as in ``rows``.
            UnknownChunkError: as in ``rows``.
        """
        rows = self.rows(ids).to(self.device)
        if not self._columns:
            raise BackendError("a table without chunks has none to take")
        return ChunkBatch(**{name: column.index_select(0, rows) for name, column in self._columns.items()})

    def remove(self, ids: Tensor) -> Tensor:
        """Remove the chunks with these ids and close the gaps.

        Returns:
            The ids removed, ``[M]`` int64 on the CPU, ascending, without repeats.

        Raises:
            ChunkShapeError: as in ``rows``.
            UnknownChunkError: as in ``rows``.
        """
        keep = torch.ones(len(self), dtype=torch.bool)
        keep[self.rows(ids)] = False
        removed = self._ids[~keep]
        if not removed.numel():
            return removed
        with torch.inference_mode(False), torch.no_grad():
            # Rows before the first gap stay where they are.
            first = int(keep.to(torch.int8).argmin())
            moved = (keep[first:].nonzero().flatten() + first).to(self.device)
            for column in self._columns.values():
                column[first : first + moved.numel()].copy_(column.index_select(0, moved))
            self._ids = self._ids[keep]
        return removed

    def copy(self) -> Self:
        """Return a table with copies of these chunks under the same ids, without the free room."""
        twin = type(self)(self.device)
        with torch.inference_mode(False), torch.no_grad():
            twin._columns = {name: column[: len(self)].clone() for name, column in self._columns.items()}
            twin._ids = self._ids.clone()
        twin._next_id = self._next_id
        return twin

    def check_queries(self, queries: Tensor) -> Tensor:
        """Return the queries on ``device``, detached.

        Args:
            queries: ``[Q, E]`` float32.

        Raises:
            ChunkShapeError: they are not that, or ``E`` is not that of the chunks.
            BackendError: a query is NaN or infinite.
        """
        size = self._columns["embeddings"].shape[2] if self._columns else "E"
        fits = queries.ndim == 2 and size in ("E", queries.shape[-1])
        if not fits or queries.dtype != torch.float32:
            raise ChunkShapeError(f"queries must be float32 [Q, {size}], got {queries.dtype} {list(queries.shape)}")
        if not bool(torch.isfinite(queries).all()):
            raise BackendError("queries must be finite, got NaN or infinity")
        return queries.detach().to(self.device)

    def _check(self, chunks: ChunkBatch) -> None:
        for name, column in self._columns.items():
            new: Tensor = getattr(chunks, name)
            # The number of chunks and, where there is one, of tokens is free.
            free = (0, 2) if name in ("keys", "values") else (0, 1) if name == "token_ids" else (0,)
            held = [size for dim, size in enumerate(column.shape) if dim not in free]
            if held != [size for dim, size in enumerate(new.shape) if dim not in free] or new.dtype != column.dtype:
                raise ChunkShapeError(
                    f"{name} {new.dtype} {list(new.shape)} do not fit the namespace, "
                    f"which holds {column.dtype} {[len(self), *column.shape[1:]]}"
                )
        if not bool(torch.isfinite(chunks.embeddings).all()):
            raise BackendError("embeddings must be finite, got NaN or infinity")

    def _reserve(self, like: ChunkBatch, rows: int, width: int) -> None:
        """Make room for ``rows`` rows of ``width`` tokens, keeping what is there."""
        capacity = len(self._columns["keys"]) if self._columns else 0
        if self._columns and rows <= capacity and width == self._columns["keys"].shape[2]:
            return
        if rows > capacity:
            capacity = max(rows, 2 * capacity)
        grown = {}
        for name in _COLUMNS:
            model: Tensor = getattr(like, name)
            shape = [capacity, *model.shape[1:]]
            if name in _BY_TOKEN:
                shape[2 if model.ndim == 4 else 1] = width
            fill = UNKNOWN_TOKEN if name == "token_ids" else 0
            column = torch.full(shape, fill, dtype=model.dtype, device=self.device)
            if self._columns:
                old = self._columns[name][: len(self)]
                room = column[: len(self)]
                if name in _BY_TOKEN:
                    room = room.narrow(old.ndim - 2 if old.ndim == 4 else 1, 0, old.shape[2 if old.ndim == 4 else 1])
                room.copy_(old)
            grown[name] = column
        # Assigned last: running out of memory half way must leave the table as it was.
        self._columns = grown
