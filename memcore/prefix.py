"""What a layer attends to before its window: the sinks and the chunks that were retrieved, row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import attrs
import torch
from torch import Tensor

from memcore.attention import place_at, place_before, side_by_side
from memcore.layer_setup import LayerSetup
from memcore.recall import Retrieved
from memcore.transfer import to_device
from memcore.window import LocalWindow


@attrs.frozen(eq=False)
class KeysValues:
    """Keys ``[B, H, T, D]`` and values ``[B, H, T, Dv]`` of the same tokens."""

    keys: Tensor
    values: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return what a function makes of both."""
        return attrs.evolve(self, keys=change(self.keys), values=change(self.values))

    def rows(self, index: Tensor) -> Self:
        """Return the rows ``index``, ``[M]`` int64."""
        return self.map(lambda x: x.index_select(0, index.to(x.device)))


@attrs.frozen(eq=False)
class Prefix(KeysValues):
    """Columns before the window: sinks, then retrieved chunks, right-aligned in each row.

    Attributes:
        live: ``[B, P]`` bool on the CPU, False where a row has fewer columns than others; None if all are live.
    """

    live: Tensor | None = None

    def __len__(self) -> int:
        return int(self.keys.shape[2])

    def rows(self, index: Tensor) -> Prefix:
        """Return the rows ``index``, ``[M]`` int64."""
        chosen = super().rows(index)
        return chosen if self.live is None else attrs.evolve(chosen, live=self.live[index.cpu()])


def lay_out(
    setup: LayerSetup,
    window: LocalWindow,
    sinks: KeysValues | None,
    found: Sequence[Retrieved | None],
    like: KeysValues,
) -> Prefix:
    """Lay sinks and retrieved chunks out before the window.

    Args:
        setup: of the layer.
        window: with the piece under way.
        sinks: ``[B, H, S, D]``, of the rows that have some.
        found: what each row attends to.
        like: the window's, whose shape but for the columns, dtype and device are those wanted.
    """
    rows_k, rows_v = [], []
    for row, (chosen, end) in enumerate(zip(found, window.starts(), strict=True)):
        keys, values = [], []
        if chosen is not None:
            placed, end = _placed(setup, to_device(chosen.chunks.keys, like.keys.device), chosen.chunks.starts, end)
            keys.append(side_by_side(placed))
            values.append(side_by_side(to_device(chosen.chunks.values, like.values.device)))
        if sinks is not None and bool(window.sinks.live[row].all()):
            keys.insert(0, _before(setup, sinks.keys[row : row + 1], window.sinks.positions[row, :1], end)[0])
            values.insert(0, sinks.values[row])
        rows_k.append(torch.cat(keys, dim=1) if keys else like.keys[row, :, :0])
        rows_v.append(torch.cat(values, dim=1) if values else like.values[row, :, :0])
    lengths = [block.shape[1] for block in rows_k]
    longest = max(lengths)
    pad = torch.nn.functional.pad
    return Prefix(
        keys=torch.stack([pad(block, (0, 0, longest - block.shape[1], 0)) for block in rows_k]),
        values=torch.stack([pad(block, (0, 0, longest - block.shape[1], 0)) for block in rows_v]),
        live=torch.arange(longest) >= longest - torch.tensor(lengths)[:, None] if min(lengths) < longest else None,
    )


def _placed(setup: LayerSetup, keys: Tensor, starts: Tensor, end: int) -> tuple[Tensor, int]:
    """Return retrieved keys where ``config.positions`` wants them before ``end``, and where they begin."""
    if setup.geometry is not None and setup.config.positions == "zero":
        return place_at(keys, starts, end - 1, setup.geometry), end - 1
    return _before(setup, keys, starts, end), end - keys.shape[0] * keys.shape[2]


def _before(setup: LayerSetup, keys: Tensor, starts: Tensor, end: int) -> Tensor:
    if setup.geometry is None or setup.config.positions == "original":
        return keys
    return place_before(keys, starts, end, setup.geometry)
