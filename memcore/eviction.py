"""Eviction policies: which chunks leave a namespace that holds more than it may."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Final

import attrs
import torch
from torch import Tensor

from memcore.options import NoOptions

_NAMED: Final = 5
"""Ids that a message names."""


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
    """Chooses what to forget.

    Args:
        options: an instance of ``Options``.

    Attributes:
        Options: frozen attrs class that the user's ``eviction_options`` are structured into, strictly.
    """

    Options: ClassVar[type] = NoOptions

    def __init__(self, options: object = None) -> None:  # noqa: B027  # most have none
        """Take the options."""

    @abstractmethod
    def select(self, usage: ChunkUsage, capacity: int) -> Tensor:
        """Return the ids to drop, so that at most ``capacity`` chunks stay. Called only on overflow.

        Args:
            usage: every chunk of the namespace.
            capacity: chunks the namespace may hold, at least 1.

        Returns:
            ``[M]`` int64, a subset of ``usage.ids`` without repeats, ``M >= len(usage) - capacity``.
        """


def problem_with_choice(choice: object, usage: ChunkUsage, capacity: int) -> str:
    """Return why the ids that a policy or a plugin chose cannot be dropped, empty if they can.

    Args:
        choice: what it returned; see :meth:`EvictionPolicy.select`.
        usage: every chunk of the namespace.
        capacity: chunks the namespace may hold.
    """
    if not isinstance(choice, Tensor) or choice.ndim != 1 or choice.dtype != torch.int64:
        given = f"{choice.dtype} {list(choice.shape)}" if isinstance(choice, Tensor) else type(choice).__name__
        return f"must return int64 [M], got {given}"
    choice = choice.cpu()
    if (unknown := choice[~torch.isin(choice, usage.ids)]).numel():
        return f"chose {len(unknown)} ids that are not stored: {_some(unknown)}"
    found, times = choice.unique(return_counts=True)
    if len(found) < len(choice):
        return f"chose ids twice: {_some(found[times > 1])}"
    if len(choice) < (least := len(usage) - capacity):
        return f"chose {len(choice)} chunks to drop where at least {least} must go"
    return ""


def _some(ids: Tensor) -> str:
    """Return the first ids, as text."""
    return ", ".join(map(str, ids[:_NAMED].tolist())) + (", ..." if len(ids) > _NAMED else "")
