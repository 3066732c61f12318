"""The plugin on a bank: it counts what happens there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from memcore_metrics import METRICS, Counts, Metrics, plugin

from memcore.bank import MemoryBank
from memcore.eviction_policies import FifoEviction
from memcore.exact_backend import ExactBackend, ExactOptions
from memcore.plugin_hooks import PluginHooks
from memcore.plugins import PluginRegistry
from memcore.testing import make_chunks, random_queries

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def bank() -> Iterator[MemoryBank]:
    METRICS.reset()
    registry = PluginRegistry()
    registry.register(plugin, "metrics")
    with ExactBackend(ExactOptions()) as backend:
        yield MemoryBank(backend, FifoEviction(), capacity=5, hooks=PluginHooks(registry))
    METRICS.reset()


def test_it_counts_by_namespace_and_in_all(bank: MemoryBank) -> None:
    chunks = make_chunks(4)
    size = chunks.embeddings.nbytes + chunks.keys.nbytes + chunks.values.nbytes
    bank.store("a", chunks)
    bank.retrieve("a", random_queries(1), 10)
    bank.store("a", chunks)
    bank.retrieve("a", random_queries(2), 1)
    bank.store("b", chunks)
    counts = METRICS.by_namespace()
    assert counts["a"] == Counts(
        stores=2,
        stored=8,
        stored_bytes=2 * size,
        retrievals=2,
        searches=1,
        retrieved=5,
        evictions=1,
        evicted=3,
        seconds=counts["a"].seconds,
    )
    assert counts["b"] == Counts(stores=1, stored=4, stored_bytes=size)
    assert METRICS.total().stored == 12
    assert METRICS.total().seconds >= counts["a"].seconds > 0


def test_time_runs_from_the_first_event_to_the_last() -> None:
    times = iter([10.0, 11.0, 14.5])
    metrics = Metrics(clock=lambda: next(times))
    metrics.add("a", stored=1)
    metrics.add("b", stored=1)
    metrics.add("a", evicted=1)
    assert {name: counts.seconds for name, counts in metrics.by_namespace().items()} == {"a": 4.5, "b": 0.0}
    assert metrics.total().seconds == 4.5


def test_nothing_happened_yet() -> None:
    assert Metrics().total() == Counts()
    assert Metrics().by_namespace() == {}


def test_the_numbers_can_be_written_to_a_file(bank: MemoryBank, tmp_path: Path) -> None:
    bank.store("a", make_chunks(2))
    plugin.write(tmp_path / "metrics.json")
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    assert numbers["total"]["stored"] == numbers["namespaces"]["a"]["stored"] == 2
