"""The eviction policies that come with memcore."""

from __future__ import annotations

import math
from typing import cast

import attrs
import torch
from attrs.validators import and_, ge, le
from torch import Tensor

from memcore.eviction import ChunkUsage, EvictionPolicy

_fraction = and_(ge(0.0), le(1.0))


def _lowest(usage: ChunkUsage, capacity: int, key: Tensor) -> Tensor:
    """Return just enough ids with the smallest keys, the oldest of equals first."""
    order = torch.argsort(key, stable=True)
    return usage.ids[order[: max(0, len(usage) - capacity)]].sort().values


class FifoEviction(EvictionPolicy):
    """Drops the oldest chunks, just enough of them."""

    def select(self, usage: ChunkUsage, capacity: int) -> Tensor:
        """Return the oldest ids: see :meth:`memcore.EvictionPolicy.select`."""
        return usage.ids[: max(0, len(usage) - capacity)].clone()


class LruEviction(EvictionPolicy):
    """Drops the chunks whose last use is longest ago, just enough of them; the oldest of equals first."""

    def select(self, usage: ChunkUsage, capacity: int) -> Tensor:
        """Return the ids least recently used: see :meth:`memcore.EvictionPolicy.select`."""
        return _lowest(usage, capacity, usage.last_used)


class LfuEviction(EvictionPolicy):
    """Drops the chunks retrieved least often, just enough of them; the oldest of equals first.

    A chunk just stored was never retrieved. Once all others were, it is the next to go.
    """

    def select(self, usage: ChunkUsage, capacity: int) -> Tensor:
        """Return the ids least often retrieved: see :meth:`memcore.EvictionPolicy.select`."""
        return _lowest(usage, capacity, usage.retrievals)


@attrs.frozen(kw_only=True)
class MemLongOptions:
    """Options of ``memlong``; by default those of the paper.

    Attributes:
        keep_newest: share of the stored chunks that are too new to judge, 0 to 1.
        drop_oldest: share of the stored chunks that go for their age, 0 to 1.
        target: share of the capacity to come down to, 0 to 1.
    """

    keep_newest: float = attrs.field(default=0.1, validator=_fraction)
    drop_oldest: float = attrs.field(default=0.1, validator=_fraction)
    target: float = attrs.field(default=0.5, validator=_fraction)


class MemLongEviction(EvictionPolicy):
    """The dynamic memory update of MemLong (arXiv 2408.16967): drops what is old or was seldom retrieved.

    Of the ``n`` chunks stored, the newest ``floor(0.1 n)`` stay and the oldest ``floor(0.1 n)`` go. Of those between,
    the least retrieved go, the oldest of equals first, until half the capacity is left (rounded up, so that something
    always is) or none of them remain. Should the newest alone be more than the capacity, because very many came at
    once, the oldest of these go as well.

    Dropping half at a time makes evictions rare, and gives new chunks time to be retrieved before they are judged.
    """

    Options = MemLongOptions

    def __init__(self, options: object = None) -> None:
        self.options = MemLongOptions() if options is None else cast(MemLongOptions, options)

    def select(self, usage: ChunkUsage, capacity: int) -> Tensor:
        """Return the ids to forget: see :meth:`memcore.EvictionPolicy.select`."""
        count, options = len(usage), self.options
        newest = int(options.keep_newest * count)
        oldest = min(int(options.drop_oldest * count), count - newest)
        middle = slice(oldest, count - newest)
        stay = max(1, math.ceil(options.target * capacity))
        # The oldest go even where fewer than the target stay: whoever sets drop_oldest high wants that.
        surplus = max(0, count - oldest - stay)
        least = torch.argsort(usage.retrievals[middle], stable=True)[:surplus] + oldest
        gone = torch.zeros(count, dtype=torch.bool)
        gone[:oldest] = True
        gone[least] = True
        excess = max(0, int((~gone).sum()) - capacity)
        gone[(~gone).nonzero().flatten()[:excess]] = True
        return usage.ids[gone]
