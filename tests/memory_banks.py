"""Memory banks for tests, over backends that count or stay, and a listener for their hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from memcore.backend import Damage, MemoryBackend, PersistentBackend
from memcore.bank import MemoryBank
from memcore.bank_hooks import NO_HOOKS, Holdings
from memcore.chunk import ChunkBatch, SearchResult
from memcore.eviction_policies import FifoEviction
from memcore.exact_backend import ExactBackend, ExactOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from memcore.bank_hooks import Hooks
    from memcore.eviction import ChunkUsage

QUERIES = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))


class Counting(ExactBackend):
    """Counts copies and searches, and gives the chunks of a copy ids of their own."""

    def __init__(self) -> None:
        super().__init__(ExactOptions())
        self.copies = 0
        self.searches = 0

    def copy(self, source: str, target: str) -> None:
        self.copies += 1
        MemoryBackend.copy(self, source, target)

    def retrieve(self, namespace: str, queries: torch.Tensor, top_k: int) -> SearchResult:
        self.searches += 1
        return super().retrieve(namespace, queries, top_k)


class Persistent(Counting, PersistentBackend):
    """Stays when it is closed, as what is on a disk would."""

    read_only = False

    def __init__(self) -> None:
        super().__init__()
        self.records: dict[str, bytes] = {}

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def write_record(self, name: str, value: bytes) -> None:
        self.records[name] = value

    def read_record(self, name: str) -> bytes | None:
        return self.records.get(name)

    def drop_record(self, name: str) -> None:
        self.records.pop(name, None)

    def record_names(self) -> list[str]:
        return sorted(self.records)

    def disk_bytes(self) -> int:
        return 0

    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[Damage]:
        return []

    def compact(self) -> None:
        pass


class Listener:
    """Writes down what it is told, and decides evictions if it was given a choice."""

    def __init__(self, choice: torch.Tensor | None = None) -> None:
        self.events: list[tuple[str, str, list[int]]] = []
        self.results: list[SearchResult | None] = []
        self.measured: list[tuple[int, float]] = []
        self.choice = choice

    def opened(self, holdings: Callable[[], Holdings | None]) -> None:
        self.holdings = holdings

    def stored(self, namespace: str, ids: torch.Tensor, chunks: ChunkBatch, *, count: int, seconds: float) -> None:
        assert len(chunks) == len(ids)
        self.measured.append((count, seconds))
        self.events.append(("stored", namespace, ids.tolist()))

    def retrieved(
        self,
        namespace: str,
        ids: torch.Tensor,
        chunks: ChunkBatch,
        result: SearchResult | None,
        *,
        count: int,
        seconds: float,
    ) -> None:
        assert len(chunks) == len(ids)
        self.measured.append((count, seconds))
        self.events.append(("retrieved", namespace, ids.tolist()))
        self.results.append(result)

    def evict(self, namespace: str, usage: ChunkUsage, capacity: int) -> torch.Tensor | None:
        return self.choice

    def evicted(self, namespace: str, ids: torch.Tensor, *, count: int, seconds: float) -> None:
        self.measured.append((count, seconds))
        self.events.append(("evicted", namespace, ids.tolist()))


def make_bank(
    capacity: int | None = None, hooks: Hooks = NO_HOOKS, backend: Counting | None = None
) -> tuple[MemoryBank, Counting]:
    backend = backend or Counting()
    return MemoryBank(backend, FifoEviction(), capacity=capacity, hooks=hooks), backend


def fetch_all(bank: MemoryBank, namespace: str) -> ChunkBatch:
    found = bank.retrieve(namespace, QUERIES, 1000)
    assert found is not None
    return found.chunks


def swap(bank: MemoryBank, one: str, two: str) -> None:
    bank.fork(one, "spare")
    bank.fork(two, one)
    bank.fork("spare", two)
    bank.drop("spare")
