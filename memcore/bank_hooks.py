"""Whom a memory bank tells what happens."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import attrs

from memcore.errors import ClosedError

if TYPE_CHECKING:
    from torch import Tensor

    from memcore.bank import MemoryBank
    from memcore.chunk import ChunkBatch, SearchResult
    from memcore.eviction import ChunkUsage


@attrs.frozen(kw_only=True)
class Holdings:
    """What a memory holds at a moment, chunks that several sequences share counted once.

    Attributes:
        chunks: in all namespaces together.
        nbytes: bytes of their embeddings and payloads, as the backend keeps them.
    """

    chunks: int
    nbytes: int


class Hooks(Protocol):
    """Whom the bank tells what happens. Calls must not raise: a watcher is no reason to stop generating.

    ``count`` is how many chunks the namespace holds then, ``seconds`` how long the bank took, without waiting for its
    turn.
    """

    def opened(self, holdings: Callable[[], Holdings | None]) -> None:
        """A bank was opened; what it holds can be asked at any time, from any thread: None once it is closed."""

    def stored(self, namespace: str, ids: Tensor, chunks: ChunkBatch, *, count: int, seconds: float) -> None:
        """Chunks were stored."""

    def retrieved(
        self,
        namespace: str,
        ids: Tensor,
        chunks: ChunkBatch,
        result: SearchResult | None,
        *,
        count: int,
        seconds: float,
    ) -> None:
        """These chunks will be attended to; ``result`` is None if all candidates were taken without a search."""

    def evict(self, namespace: str, usage: ChunkUsage, capacity: int) -> Tensor | None:
        """Decide what goes, as :meth:`memcore.EvictionPolicy.select` does, or return None to leave it to the policy."""

    def evicted(self, namespace: str, ids: Tensor, *, count: int, seconds: float) -> None:
        """Chunks were dropped to make room."""


class _NoHooks:
    def opened(self, holdings: Callable[[], Holdings | None]) -> None:
        pass

    def stored(self, namespace: str, ids: Tensor, chunks: ChunkBatch, *, count: int, seconds: float) -> None:
        pass

    def retrieved(
        self,
        namespace: str,
        ids: Tensor,
        chunks: ChunkBatch,
        result: SearchResult | None,
        *,
        count: int,
        seconds: float,
    ) -> None:
        pass

    def evict(self, namespace: str, usage: ChunkUsage, capacity: int) -> Tensor | None:
        return None

    def evicted(self, namespace: str, ids: Tensor, *, count: int, seconds: float) -> None:
        pass


NO_HOOKS: Final[Hooks] = _NoHooks()
"""Hooks that nobody listens to."""


def holdings_of(bank: MemoryBank) -> Callable[[], Holdings | None]:
    """Return a function that tells what a bank holds, None once it is closed or gone; it does not keep it alive."""
    reference = weakref.ref(bank)

    def holdings() -> Holdings | None:
        held = reference()
        if held is None:
            return None
        try:
            return held.holdings()
        except ClosedError:
            return None

    return holdings
