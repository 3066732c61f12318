"""Eviction policies: which chunks leave a namespace that holds more than it may."""

from __future__ import annotations

from abc import ABC, abstractmethod

import attrs
from torch import Tensor


@attrs.frozen(eq=False, kw_only=True)
class ChunkUsage:
    """What is known of the ``N`` chunks of a namespace, oldest first.

    Attributes:
        ids: ``[N]`` int64, ascending, so position in the tensor is age order.
        last_used: ``[N]`` int64, the bank's clock when the chunk was last retrieved, or stored if it never was.
        retrievals: ``[N]`` int64, how often the chunk was retrieved.
    """

    ids: Tensor
    last_used: Tensor
    retrievals: Tensor

    def __len__(self) -> int:
        return int(self.ids.numel())


class EvictionPolicy(ABC):
    """Chooses what to forget."""

    @abstractmethod
    def select(self, usage: ChunkUsage, capacity: int) -> Tensor:
        """Return the ids to drop, so that at most ``capacity`` chunks stay. Called only on overflow.

        Args:
            usage: every chunk of the namespace.
            capacity: chunks the namespace may hold, at least 1.

        Returns:
            ``[M]`` int64, a subset of ``usage.ids`` without repeats, ``M >= len(usage) - capacity``.
        """
