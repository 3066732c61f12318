"""Bookkeeping of the local window: which columns hold real tokens, where they stand, and what must leave.

One window serves all layers of a cache. It lives on the CPU, whatever device the keys are on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import attrs
import torch
from torch import Tensor

from memcore.config import MemoryConfig
from memcore.errors import UnsupportedInputError
from memcore.recall import Retrieved


@attrs.frozen(kw_only=True)
class RowDeparture:
    """What leaves one row: ``sinks`` columns from ``start``, then ``chunks`` whole chunks."""

    start: int
    sinks: int
    chunks: int


@attrs.frozen(eq=False, kw_only=True)
class Departure:
    """What leaves the window before new tokens come in.

    Attributes:
        order: ``[B, W]`` int64, columns to gather first so that each row's live ones stand right-aligned; None if
            they do already.
        rows: what leaves each row, in columns after that gather.
        keep: columns that stay, counted from the right.
    """

    order: Tensor | None
    rows: list[RowDeparture]
    keep: int

    @property
    def spills(self) -> bool:
        """Whether any row loses a token."""
        return any(row.sinks or row.chunks for row in self.rows)


@attrs.define(eq=False, kw_only=True)
class Columns:
    """Parallel facts on ``n`` columns of ``B`` rows.

    Attributes:
        live: ``[B, n]`` bool, False for padding.
        positions: ``[B, n]`` int64 position ids.
        token_ids: ``[B, n]`` int64.
    """

    live: Tensor
    positions: Tensor
    token_ids: Tensor

    @classmethod
    def empty(cls, batch: int) -> Columns:
        """Return no columns of ``batch`` rows."""
        none = torch.zeros(batch, 0, dtype=torch.int64)
        return cls(live=none.bool(), positions=none, token_ids=none)

    def __len__(self) -> int:
        return int(self.live.shape[1])

    @property
    def all_live(self) -> bool:
        """Whether no column is padding."""
        return bool(self.live.all())

    def join(self, other: Columns) -> Columns:
        """Return these columns followed by ``other``."""
        pairs = zip(self._tensors(), other._tensors(), strict=True)
        return Columns(**{name: torch.cat((mine, theirs), dim=1) for (name, mine), (_, theirs) in pairs})

    def span(self, begin: int, end: int) -> Columns:
        """Return columns ``begin`` to ``end``."""
        return Columns(**{name: tensor[:, begin:end] for name, tensor in self._tensors()})

    def gather(self, order: Tensor) -> Columns:
        """Return column ``order[b, i]`` of row ``b`` as column ``i``."""
        return Columns(**{name: tensor.gather(1, order) for name, tensor in self._tensors()})

    def rows(self, index: Tensor) -> Columns:
        """Return the rows ``index``."""
        return Columns(**{name: tensor[index] for name, tensor in self._tensors()})

    def right_aligned(self) -> Tensor | None:
        """Return the ``[B, n]`` order that moves padding to the left, or None if there is none to move."""
        if self.all_live:
            return None
        order = self.live.int().argsort(dim=1, stable=True)
        return None if bool((order == torch.arange(len(self))).all()) else order

    def fit(self, batch: int) -> bool:
        """Return whether they are columns of so many rows, for those that were read from somewhere."""
        wanted = {"live": torch.bool, "positions": torch.int64, "token_ids": torch.int64}
        return all(
            tensor.dtype == wanted[name] and tensor.ndim == 2 and tensor.shape == (batch, self.live.shape[-1])
            for name, tensor in self._tensors()
        )

    def state(self) -> dict[str, Tensor]:
        """Return the three tensors by name."""
        return dict(self._tensors())

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [("live", self.live), ("positions", self.positions), ("token_ids", self.token_ids)]


def last_live(columns: Columns, count: int) -> tuple[Tensor | None, Columns]:
    """Pick the last ``count`` live columns of each row, right-aligned.

    Returns:
        The ``[B, min(count, n)]`` order to gather by, or None where a slice of the last columns does, and what the
        picked columns are; rows with fewer live ones keep padding on the left.
    """
    order = columns.right_aligned()
    if order is None:
        return None, columns.span(max(0, len(columns) - count), len(columns))
    order = order[:, max(0, len(columns) - count) :]
    return order, columns.gather(order)


class LocalWindow:
    """The tokens that are still attended to directly.

    While everything fits into ``window + sinks`` columns nothing moves. Then, for each row, the first ``sinks`` real
    tokens are set apart for good, and whole chunks leave from the left whenever new tokens would overflow ``window``.

    Attributes:
        seen: columns fed so far, padding included.
        columns: the window's columns, new ones on the right.
        active: whether anything ever had to leave.
        sinks: the tokens set apart; not live in rows that have none yet.
        recent: the last ``query_tokens`` tokens before the piece that is under way.
        recent_after: the same, with that piece.
        recent_order: how ``recent_after`` is gathered from ``recent`` and the piece; None means the last columns.
        retrieve_now: whether the piece under way calls for a retrieval.
        new: columns of the piece under way (or, after it, of the last one).
        decode: whether that piece is a generated token.
        masks: visibility masks of the piece under way, shared by its layers.
        found: what the memory layer retrieved for each row of the piece under way, for the layers that read it.
        under_way: whether a piece is passing through the model.
    """

    def __init__(self, config: MemoryConfig, batch: int) -> None:
        self.config = config
        self.seen = 0
        self.active = False
        self.columns = Columns.empty(batch)
        none = torch.zeros(batch, config.sinks, dtype=torch.int64)
        self.sinks = Columns(live=none.bool(), positions=none, token_ids=none.clone())
        self.recent = Columns.empty(batch)
        self.recent_after = self.recent
        self.recent_order: Tensor | None = None
        self.retrieve_now = False
        self.under_way = False
        self.new = 0
        self.decode = False
        self.masks: dict[tuple[int, torch.device], Tensor | None] = {}
        self.found: list[Retrieved | None] = []
        self._since_retrieval = 0
        self._raw = 0  # columns at the right end that no gather has moved

    @property
    def batch(self) -> int:
        """Rows."""
        return int(self.columns.live.shape[0])

    @property
    def room(self) -> int:
        """Columns that fit before anything must leave."""
        return self.config.room

    def starts(self) -> list[int]:
        """Return the position of the first token still in each row's window."""
        first = self.columns.live.int().argmax(dim=1, keepdim=True)
        return [int(p) for p in self.columns.positions.gather(1, first).flatten()]

    def make_room(self, live: Tensor) -> Departure | None:
        """Decide what leaves before ``live`` (``[B, T]`` bool) new tokens, and take it off the books.

        Returns:
            None while everything fits.
        """
        new = int(live.shape[1])
        if not self.active and self.seen + new <= self.room:
            return None
        self.active = True
        order = self.columns.right_aligned()
        if order is not None:
            self.columns, self._raw = self.columns.gather(order), 0
        width, chunk = len(self.columns), self.config.chunk_size
        held = self.columns.live.sum(dim=1).tolist()
        coming = live.sum(dim=1).tolist()
        rows, left = [], []
        for row in range(self.batch):
            count, start = held[row], width - held[row]
            sinks = 0
            if not bool(self.sinks.live[row].any()) and self.config.sinks:
                if count + coming[row] > self.room:
                    sinks = self.config.sinks
                limit = self.config.window_length if sinks else self.room
            else:
                limit = self.config.window_length
            over = count - sinks + coming[row] - limit
            chunks = max(0, -(-over // chunk))
            rows.append(RowDeparture(start=start, sinks=sinks, chunks=chunks))
            left.append(count - sinks - chunks * chunk)
        departure = Departure(order=order, rows=rows, keep=max(left, default=0))
        for row, leaving in enumerate(rows):
            if leaving.sinks:
                first = slice(leaving.start, leaving.start + leaving.sinks)
                self.sinks.positions[row] = self.columns.positions[row, first]
                self.sinks.token_ids[row] = self.columns.token_ids[row, first]
                self.sinks.live[row] = True
        return departure

    def take(self, departure: Departure) -> None:
        """Forget the columns that left, once every layer has stored them."""
        width = len(self.columns)
        live = self.columns.live.clone()
        for row, leaving in enumerate(departure.rows):
            live[row, : leaving.start + leaving.sinks + leaving.chunks * self.config.chunk_size] = False
        self.columns.live = live
        self.columns = self.columns.span(width - departure.keep, width)
        self._raw = min(self._raw, departure.keep)

    def append(self, new: Columns, *, decode: bool, spilled: bool) -> None:
        """Take in the tokens of a piece, and note whether it calls for a retrieval.

        Args:
            new: the tokens.
            decode: whether it is one generated token.
            spilled: whether tokens left the window to make room for it.
        """
        tokens = self.new = len(new)
        self.decode = decode
        self.masks = {}
        self.columns = self.columns.join(new)
        self.seen += tokens
        self._raw += tokens
        self.recent_order, self.recent_after = last_live(self.recent.join(new), self.config.query_tokens)
        self._since_retrieval += tokens
        self.retrieve_now = self.active and (
            not decode or spilled or self._since_retrieval >= self.config.retrieve_every
        )
        if self.retrieve_now:
            self._since_retrieval = 0

    def finish(self) -> None:
        """Close the piece: its tokens count as recent from now on."""
        self.recent, self.recent_order = self.recent_after, None
        self.found = []
        self.under_way = False

    def state(self) -> dict[str, Tensor]:
        """Return all that a window needs to go on between two pieces, for :meth:`from_state`."""
        counts = torch.tensor([self.seen, int(self.active), self._since_retrieval, self._raw])
        columns = {"columns": self.columns, "sinks": self.sinks, "recent": self.recent}
        return {"counts": counts} | {
            f"{name}.{field}": tensor for name, each in columns.items() for field, tensor in each.state().items()
        }

    @classmethod
    def from_state(cls, config: MemoryConfig, state: Mapping[str, Tensor]) -> Self:
        """Return the window that :meth:`state` described.

        Raises:
            KeyError: something is missing from the state.
            ValueError: something in it is of another kind or shape.
        """

        def columns(name: str) -> Columns:
            found = Columns(**{field: state[f"{name}.{field}"] for field in ("live", "positions", "token_ids")})
            if not found.fit(batch):
                raise ValueError(f"what is kept of the window's {name} is of another kind or shape")
            return found

        batch, counts = state["columns.live"].shape[0] if state["columns.live"].ndim else 0, state["counts"]
        if counts.shape != (4,) or counts.dtype != torch.int64 or min(counts.tolist()) < 0 or not batch:
            raise ValueError("the counts of the window are of another kind or shape")
        window = cls(config, batch=batch)
        window.seen, active, window._since_retrieval, window._raw = counts.tolist()
        window.active = bool(active)
        window.columns, window.sinks, window.recent = (columns(name) for name in ("columns", "sinks", "recent"))
        window.recent_after = window.recent
        return window

    def crop(self, tokens: int) -> None:
        """Take back the last ``tokens`` columns.

        Raises:
            UnsupportedInputError: some of them are no longer (or not as such) in the window.
        """
        if tokens > min(self._raw, len(self.columns)) or not self.recent.all_live:
            raise UnsupportedInputError(
                f"cannot take back {tokens} tokens: only the last {min(self._raw, len(self.columns))} are still in the "
                "local window as they were fed; raise `window`, or run one sequence at a time"
            )
        self.columns = self.columns.span(0, len(self.columns) - tokens)
        self.recent = self.recent.span(0, max(0, len(self.recent) - tokens))
        self.seen -= tokens
        self._raw -= tokens

    def select_rows(self, index: Tensor) -> None:
        """Keep the rows ``index``, in that order, repeats allowed."""
        self.columns, self.sinks, self.recent = (c.rows(index) for c in (self.columns, self.sinks, self.recent))
        self.recent_after = self.recent


def take_columns(x: Tensor, order: Tensor) -> Tensor:
    """Gather columns per row: ``[B, H, W, D]`` by ``[B, n]`` to ``[B, H, n, D]``."""
    index = order.to(x.device)[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
    return x.gather(2, index)
