"""The numbers, and how they add up."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock

import attrs


@attrs.frozen(kw_only=True)
class Counts:
    """What happened in one namespace, or in several.

    Attributes:
        stores: calls that stored something.
        stored: chunks stored.
        stored_bytes: bytes of their embeddings, keys and values.
        retrievals: calls that retrieved something.
        searches: those of them that had to search, because there were more chunks than wanted.
        retrieved: chunks retrieved.
        evictions: times that chunks were evicted to make room.
        evicted: chunks evicted.
        seconds: time from the first of these events to the last.
    """

    stores: int = 0
    stored: int = 0
    stored_bytes: int = 0
    retrievals: int = 0
    searches: int = 0
    retrieved: int = 0
    evictions: int = 0
    evicted: int = 0
    seconds: float = 0.0

    def plus(self, **more: int) -> Counts:
        """Return these counts with some of them larger."""
        return attrs.evolve(self, **{name: getattr(self, name) + number for name, number in more.items()})


class Metrics:
    """Counts by namespace, from any thread.

    Args:
        clock: tells the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._counts: dict[str, Counts] = {}
        self._spans: dict[str, tuple[float, float]] = {}

    def add(self, namespace: str, **more: int) -> None:
        """Count an event: see :class:`Counts` for the names."""
        with self._lock:
            now = self._clock()
            begin, _ = self._spans.get(namespace, (now, now))
            self._spans[namespace] = begin, now
            counts = self._counts.get(namespace, Counts()).plus(**more)
            self._counts[namespace] = attrs.evolve(counts, seconds=now - begin)

    def by_namespace(self) -> dict[str, Counts]:
        """Return the counts of each namespace in which something happened."""
        with self._lock:
            return dict(self._counts)

    def total(self) -> Counts:
        """Return the counts of all namespaces together."""
        with self._lock:
            total = Counts()
            for counts in self._counts.values():
                total = total.plus(**attrs.asdict(counts, filter=attrs.filters.exclude("seconds")))
            if not self._spans:
                return total
            begins, ends = zip(*self._spans.values(), strict=True)
            return attrs.evolve(total, seconds=max(ends) - min(begins))

    def reset(self) -> None:
        """Forget everything."""
        with self._lock:
            self._counts.clear()
            self._spans.clear()
