"""Chunks of one namespace in memory, in growable columns: what an in-memory backend keeps beside its search index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Self

import attrs
import torch
from torch import Tensor

from memcore.backend_checks import check_embeddings, check_queries, rows_of
from memcore.chunk import UNKNOWN_TOKEN, ChunkBatch
from memcore.compression import BY_TOKEN, Compression, compress, decompress
from memcore.errors import BackendError, ChunkShapeError
from memcore.reserved import reserve, takes_memory_late
from memcore.slots import Slots

_IN_ROWS: Final = ("embeddings", "starts", "lengths", "token_ids")

_RESERVED_BYTES: Final = 1 << 26
"""Room for embeddings to begin with where memory is taken only when it is written to, 64 MB."""


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

    What is small, and the embeddings, which are searched, are contiguous tensors whose capacity doubles when it is
    full. Removing chunks closes their gaps: rows move, ids do not, and are never given twice. Keys and values lie
    elsewhere, in :class:`memcore.slots.Slots`, and stay where they are.

    Chunks are as wide as the longest ever added; shorter ones are padded at the end.

    Args:
        device: where the chunks live. Ids stay on the CPU.
        compression: ``"none"`` keeps keys and values bit for bit, ``"int8"`` as :mod:`memcore.compression` says.
        pin_memory: whether chunks are taken out into page-locked memory, from which a copy to a GPU can go on while
            the CPU does something else. None where CUDA is there; always False for chunks on another device. The
            columns themselves are not: a GPU never reads them, and the system could not page them out.

    Raises:
        BackendError: memory is to be pinned and CUDA is not there.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        *,
        compression: Compression = "none",
        pin_memory: bool | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.compression: Compression = compression
        if pin_memory and not torch.cuda.is_available():
            raise BackendError("pin_memory needs CUDA, which is not there; None pins memory where it is")
        on_cpu = self.device.type == "cpu"
        self.pin_memory = on_cpu and (torch.cuda.is_available() if pin_memory is None else pin_memory)
        self._columns: dict[str, Tensor] = {}
        self._views: dict[str, Tensor] = {}
        self._payload = Slots(self.device, BY_TOKEN)
        self._dtype: torch.dtype | None = None
        self._count = 0
        self._next_id = 0

    def __len__(self) -> int:
        return self._count

    @property
    def ids(self) -> Tensor:
        """``[N]`` int64 on the CPU, ascending: the id of each row. Not to be written to, stale at the next change."""
        return self._view("ids") if self._columns else torch.empty(0, dtype=torch.int64)

    @property
    def next_id(self) -> int:
        """The id that the next chunk will get."""
        return self._next_id

    @property
    def dtype(self) -> torch.dtype | None:
        """That of keys and values, None if nothing was ever added."""
        return self._dtype

    @property
    def embeddings(self) -> Tensor:
        """``[N, V, E]`` float32 on ``device``: the rows' embeddings, a view that the next change makes stale.

        Raises:
            BackendError: nothing was ever added, so ``V`` and ``E`` are unknown.
        """
        if not self._columns:
            raise BackendError("a table without chunks has no embeddings")
        return self._view("embeddings")

    @property
    def nbytes(self) -> int:
        """Bytes of the chunks held, without the room kept free for more."""
        row = sum(self._columns[name][:1].nbytes for name in _IN_ROWS if self._columns)
        return self._count * (row + self._payload.row_bytes)

    def add(self, chunks: ChunkBatch) -> Tensor:
        """Add ``N`` chunks at the end, as detached copies.

        Returns:
            Their new ids, ``[N]`` int64 on the CPU, ascending.

        Raises:
            ChunkShapeError: they do not fit the chunks that came before.
            BackendError: an embedding is NaN or infinite, or keys or values are and are to be compressed.
        """
        if torch.is_inference_mode_enabled():
            # Rows made in inference mode could never be written to or used in training outside of it. Turning it off
            # where it is not on is dear for few chunks.
            with torch.inference_mode(False):
                return self.add(chunks)
        self._check(chunks)
        count = len(chunks)
        total = self._count + count
        with torch.no_grad():
            payload = {"keys": chunks.keys, "values": chunks.values}
            if self.compression == "int8":
                payload = compress(chunks.keys, chunks.values, chunks.lengths)
            # All room is made before anything changes: running out of memory half way must leave the table as it was.
            roomy = self._payload.with_room(payload)
            self._columns = self._with_room(chunks, total, roomy.width)
            self._payload = roomy
            new = torch.arange(self._next_id, self._next_id + count)
            self._dtype = chunks.keys.dtype
            for name in _IN_ROWS:
                column = self._columns[name][self._count : total]
                if name == "token_ids" and (width := chunks.token_ids.shape[1]) < column.shape[1]:
                    column[:, width:] = UNKNOWN_TOKEN
                    column = column[:, :width]
                column.copy_(getattr(chunks, name))
            self._columns["ids"][self._count : total].copy_(new)
            self._columns["slots"][self._count : total].copy_(self._payload.put(payload))
        self._count = total
        self._views.clear()
        self._next_id += count
        return new

    def rows(self, ids: Tensor) -> Tensor:
        """Return the row of each id: ``[N]`` int64 on the CPU.

        Raises:
            ChunkShapeError: ``ids`` is not ``[N]`` int64.
            UnknownChunkError: an id is not here; the message names it.
        """
        return rows_of(ids, self.ids)

    def take(self, ids: Tensor) -> ChunkBatch:
        """Copy out the chunks with these ids, in this order, repeats allowed; on ``device``.

        Raises:
            ChunkShapeError: as in ``rows``.
            UnknownChunkError: as in ``rows``.
        """
        rows = self.rows(ids)
        if self._dtype is None:
            raise BackendError("a table without chunks has none to take")
        compressed = self.compression == "int8"
        payload = self._payload.take(self._columns["slots"][rows], pinned=self.pin_memory and not compressed)
        rows = rows.to(self.device)
        taken = {name: self._columns[name].index_select(0, rows) for name in _IN_ROWS}
        if compressed:
            payload["keys"], payload["values"] = decompress(payload, taken["lengths"], self._dtype)
            if self.pin_memory:
                payload = {name: payload[name].pin_memory() for name in ("keys", "values")}
        return ChunkBatch(keys=payload["keys"], values=payload["values"], **taken)

    def remove(self, ids: Tensor) -> Tensor:
        """Remove the chunks with these ids and close the gaps.

        Returns:
            The ids removed, ``[M]`` int64 on the CPU, ascending, without repeats.

        Raises:
            ChunkShapeError: as in ``rows``.
            UnknownChunkError: as in ``rows``.
        """
        keep = torch.ones(self._count, dtype=torch.bool)
        keep[self.rows(ids)] = False
        removed = self.ids[~keep]
        if not removed.numel():
            return removed
        with torch.inference_mode(False), torch.no_grad():
            gone = self._columns["slots"][: self._count][~keep]
            # Rows before the first gap stay where they are.
            first = int(keep.to(torch.int8).argmin())
            moved = keep[first:].nonzero().flatten() + first
            for column in self._columns.values():
                column[first : first + moved.numel()].copy_(column.index_select(0, moved.to(column.device)))
            self._count -= removed.numel()
            self._views.clear()
            self._payload.free(gone)
        return removed

    def copy(self) -> Self:
        """Return a table with copies of these chunks under the same ids, without the free room."""
        twin = type(self)(self.device, compression=self.compression, pin_memory=self.pin_memory)
        if self._dtype is not None:
            twin.restore(self.tensors(), next_id=self._next_id, dtype=self._dtype)
        return twin

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of everything held, for ``restore``: ``N`` rows of each tensor by name, on ``device``."""
        if not self._columns:
            raise BackendError("a table without chunks has nothing to copy out")
        rows = {name: self._columns[name][: self._count].clone() for name in (*_IN_ROWS, "ids")}
        return rows | self._payload.take(self._columns["slots"][: self._count])

    def restore(self, tensors: Mapping[str, Tensor], *, next_id: int, dtype: torch.dtype) -> None:
        """Fill an empty table with what ``tensors`` of one with the same ``compression`` returned.

        Args:
            tensors: by name.
            next_id: of the table that they come from.
            dtype: likewise.
        """
        if self._columns:
            raise BackendError(f"only an empty table can be restored, this one holds {self._count} chunks")
        with torch.inference_mode(False), torch.no_grad():
            columns = {name: tensors[name].to(self.device) for name in _IN_ROWS} | {"ids": tensors["ids"].cpu()}
            payload = {name: tensor for name, tensor in tensors.items() if name not in columns}
            roomy = self._payload.with_room(payload)
            columns["slots"] = roomy.put(payload)
        self._payload, self._columns = roomy, columns
        self._count, self._next_id, self._dtype = len(columns["ids"]), next_id, dtype

    def check_queries(self, queries: Tensor) -> Tensor:
        """Return the queries on ``device``, detached.

        Args:
            queries: ``[Q, E]`` float32.

        Raises:
            ChunkShapeError: they are not that, or ``E`` is not that of the chunks.
            BackendError: a query is NaN or infinite.
        """
        size = self._columns["embeddings"].shape[2] if self._columns else None
        return check_queries(queries, size).to(self.device)

    def _view(self, name: str) -> Tensor:
        """Return the rows of a column that are in use; made once, as making it takes longer than a short search."""
        view = self._views.get(name)
        if view is None:
            view = self._views[name] = self._columns[name][: self._count]
        return view

    def _check(self, chunks: ChunkBatch) -> None:
        if self._dtype is not None:
            payload, rows = self._payload.columns(), self._columns
            for name in ("keys", "values"):
                new, held = getattr(chunks, name), payload[name]
                # The number of chunks and of tokens is free.
                fits = new.shape[1] == held.shape[1] and new.shape[3] == held.shape[3] and new.dtype == self._dtype
                self._require(fits, name, new, self._dtype, held)
            held = rows["embeddings"]
            self._require(
                chunks.embeddings.shape[1:] == held.shape[1:], "embeddings", chunks.embeddings, held.dtype, held
            )
        check_embeddings(chunks)

    def _require(self, fits: bool, name: str, new: Tensor, dtype: torch.dtype, held: Tensor) -> None:
        if not fits:
            raise ChunkShapeError(
                f"{name} {new.dtype} {list(new.shape)} do not fit the namespace, "
                f"which holds {dtype} {[self._count, *held.shape[1:]]}"
            )

    def _with_room(self, like: ChunkBatch, rows: int, width: int) -> dict[str, Tensor]:
        """Return columns with what is there and room for ``rows`` rows of ``width`` tokens: these, if they have it."""
        capacity = self._columns["ids"].shape[0] if self._columns else 0
        if self._columns and rows <= capacity and width == self._columns["token_ids"].shape[1]:
            return self._columns
        if rows > capacity:
            capacity = max(rows, 2 * capacity)
            if takes_memory_late(self.device):
                vectors = like.embeddings.shape[1:].numel() * like.embeddings.itemsize
                capacity = max(capacity, _RESERVED_BYTES // max(1, vectors))
        shapes = {"embeddings": like.embeddings.shape[1:], "token_ids": (width,)}
        grown = {}
        for name in (*_IN_ROWS, "ids", "slots"):
            dtype = torch.float32 if name == "embeddings" else torch.int64
            device = torch.device("cpu") if name in ("ids", "slots") else self.device
            column = reserve((capacity, *shapes.get(name, ())), dtype, device)
            if self._columns:
                old, room = self._columns[name][: self._count], column[: self._count]
                if name == "token_ids":
                    room[:, old.shape[1] :] = UNKNOWN_TOKEN
                    room = room[:, : old.shape[1]]
                room.copy_(old)
            grown[name] = column
        return grown
