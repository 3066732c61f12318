"""The metrics: counters and histograms that hooks write, and gauges that are read when somebody asks for them."""

from __future__ import annotations

from collections import Counter as Sums
from collections.abc import Callable, Iterator
from threading import Lock
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from memcore import Holdings

LABELS: Final = ("backend",)
"""Of every metric. Names of sessions and namespaces are not among them: each value of a label is a time series of its
own, which Prometheus keeps, and there would be no end of them."""

SECONDS: Final = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Upper ends of the buckets of histograms: small memories answer in less than a millisecond, large ones in seconds."""


class Metrics:
    """All metrics, registered.

    Args:
        registry: where.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str) -> Counter:
            return Counter(f"memcore_{name}", text, LABELS, registry=registry)

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(f"memcore_{name}_seconds", text, LABELS, registry=registry, buckets=SECONDS)

        self.stored = counter("chunks_stored", "Chunks that were stored.")
        self.retrieved = counter("chunks_retrieved", "Chunks that came back to be attended to.")
        self.evicted = counter("chunks_evicted", "Chunks that were dropped to make room.")
        self.stored_bytes = counter("stored_bytes", "Bytes of the embeddings, keys and values that were stored.")
        self.retrieved_bytes = counter("retrieved_bytes", "Bytes of the embeddings, keys and values that came back.")
        self.searches = counter("searches", "Retrievals that had to search.")
        self.store_seconds = seconds("store", "Time that storing took.")
        self.retrieve_seconds = seconds("retrieve", "Time that searching and fetching took.")
        self.evict_seconds = seconds("evict", "Time that choosing and dropping took.")
        self.open = OpenMemories()
        registry.register(self.open)


class OpenMemories(Collector):
    """What the open memories hold, asked whenever the metrics are."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._memories: list[tuple[str, Callable[[], Holdings | None]]] = []

    def add(self, backend: str, holdings: Callable[[], Holdings | None]) -> None:
        """Take in a memory that was opened."""
        with self._lock:
            self._memories.append((backend, holdings))

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges without values, which registering asks for."""
        yield GaugeMetricFamily("memcore_memories", "Memories that are open.", labels=LABELS)
        yield GaugeMetricFamily("memcore_chunks", "Chunks that open memories hold.", labels=LABELS)
        yield GaugeMetricFamily("memcore_bytes", "Bytes that the chunks of open memories take.", labels=LABELS)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges, added up by backend; memories that were closed are forgotten."""
        with self._lock:
            memories = list(self._memories)
        # Without the lock: a memory that is busy answers when it is done, and one that is opened need not wait for it.
        found = [(memory, memory[1]()) for memory in memories]
        closed = [memory for memory, held in found if held is None]
        with self._lock:
            self._memories = [memory for memory in self._memories if memory not in closed]
        sums: tuple[Sums[str], ...] = (Sums(), Sums(), Sums())
        for (backend, _), held in found:
            if held is not None:
                for total, value in zip(sums, (1, held.chunks, held.nbytes), strict=True):
                    total[backend] += value
        for gauge, total in zip(self.describe(), sums, strict=True):
            for backend, value in total.items():
                gauge.add_metric([backend], value)
            yield gauge
