"""Whom a memory bank tells what happens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from memcore.chunk import ChunkBatch, SearchResult
    from memcore.eviction import ChunkUsage


class Hooks(Protocol):
    """Whom the bank tells what happens. Calls must not raise: a watcher is no reason to stop generating."""

    def stored(self, namespace: str, ids: Tensor, chunks: ChunkBatch) -> None:
        """Chunks were stored."""

    def retrieved(self, namespace: str, ids: Tensor, result: SearchResult | None) -> None:
        """These chunks will be attended to; ``result`` is None if all candidates were taken without a search."""

    def evict(self, namespace: str, usage: ChunkUsage, capacity: int) -> Tensor | None:
        """Decide what goes, as :meth:`memcore.EvictionPolicy.select` does, or return None to leave it to the policy."""

    def evicted(self, namespace: str, ids: Tensor) -> None:
        """Chunks were dropped to make room."""


class _NoHooks:
    def stored(self, namespace: str, ids: Tensor, chunks: ChunkBatch) -> None:
        pass

    def retrieved(self, namespace: str, ids: Tensor, result: SearchResult | None) -> None:
        pass

    def evict(self, namespace: str, usage: ChunkUsage, capacity: int) -> Tensor | None:
        return None

    def evicted(self, namespace: str, ids: Tensor) -> None:
        pass


NO_HOOKS: Final[Hooks] = _NoHooks()
"""Hooks that nobody listens to."""
