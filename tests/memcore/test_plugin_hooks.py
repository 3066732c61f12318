"""Plugins that observe and decide, on a bank with a real backend: none can harm what is stored, or another plugin."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import torch
from memcore_sqlite.backend import SqliteBackend, SqliteOptions

from memcore.bank import MemoryBank
from memcore.bank_hooks import Holdings
from memcore.eviction import ChunkUsage
from memcore.eviction_policies import FifoEviction
from memcore.exact_backend import ExactBackend, ExactOptions
from memcore.hookspecs import hookimpl
from memcore.plugin_hooks import PluginHooks
from memcore.plugins import PluginRegistry
from memcore.session_store import SessionInfo
from memcore.testing import assert_same_chunks, make_chunks, random_queries, select

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from memcore.backend import MemoryBackend
    from memcore.chunk import ChunkBatch, SearchResult

CAPACITY = 6


class Observer:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, list[int]]] = []

    @hookimpl
    def memcore_stored(self, namespace: str, ids: torch.Tensor) -> None:
        self.calls.append(("stored", namespace, ids.tolist()))

    @hookimpl
    def memcore_retrieved(self, namespace: str, ids: torch.Tensor) -> None:
        self.calls.append(("retrieved", namespace, ids.tolist()))

    @hookimpl
    def memcore_evicted(self, namespace: str, ids: torch.Tensor) -> None:
        self.calls.append(("evicted", namespace, ids.tolist()))


class Measures:
    """Writes down every argument that is no tensor."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.holdings: list[Callable[[], Holdings | None]] = []

    @hookimpl
    def memcore_opened(self, backend: str, holdings: Callable[[], Holdings | None]) -> None:
        self.calls.append(("opened", backend))
        self.holdings.append(holdings)

    @hookimpl
    def memcore_stored(self, session: str | None, backend: str, nbytes: int, count: int, seconds: float) -> None:
        self.calls.append(("stored", session, backend, nbytes, count, seconds > 0))

    @hookimpl
    def memcore_retrieved(self, session: str | None, backend: str, nbytes: int, count: int, seconds: float) -> None:
        self.calls.append(("retrieved", session, backend, nbytes, count, seconds > 0))

    @hookimpl
    def memcore_evict(self, session: str | None, backend: str, capacity: int) -> None:
        self.calls.append(("evict", session, backend, capacity))

    @hookimpl
    def memcore_evicted(self, session: str | None, backend: str, count: int, seconds: float) -> None:
        self.calls.append(("evicted", session, backend, count, seconds > 0))


class Raises:
    """Fails in every hook."""

    @hookimpl
    def memcore_opened(self) -> None:
        raise ValueError

    @hookimpl
    def memcore_stored(self, namespace: str, ids: torch.Tensor, chunks: ChunkBatch) -> None:
        raise ValueError(namespace)

    @hookimpl
    def memcore_retrieved(self, namespace: str) -> None:
        raise ValueError(namespace)

    @hookimpl
    def memcore_evict(self, capacity: int) -> torch.Tensor | None:
        raise ValueError(capacity)

    @hookimpl
    def memcore_evicted(self, namespace: str) -> None:
        raise ValueError(namespace)


class Scribbles:
    """Writes into every tensor it is given."""

    @hookimpl
    def memcore_stored(self, ids: torch.Tensor, chunks: ChunkBatch) -> None:
        ids.fill_(-7)
        scribble(chunks)

    @hookimpl
    def memcore_retrieved(self, ids: torch.Tensor, result: SearchResult | None) -> None:
        ids.fill_(-7)
        scribble(result)

    @hookimpl
    def memcore_evict(self, usage: ChunkUsage) -> None:
        scribble(usage)

    @hookimpl
    def memcore_evicted(self, ids: torch.Tensor) -> None:
        ids.fill_(-7)


class Decides:
    """Always makes the same choice."""

    def __init__(self, choice: Any) -> None:
        self.choice = choice

    @hookimpl
    def memcore_evict(self) -> Any:
        return self.choice


class Interrupts:
    """Is interrupted by the user, which is no failure of its own."""

    @hookimpl
    def memcore_stored(self) -> None:
        raise KeyboardInterrupt


def scribble(record: ChunkBatch | SearchResult | ChunkUsage | None) -> None:
    if record is not None:
        for tensor in attrs.asdict(record, recurse=False).values():
            tensor.fill_(7)


def hooks(*plugins: object) -> PluginHooks:
    registry = PluginRegistry()
    for number, plugin in enumerate(plugins):
        registry.register(plugin, f"plugin {number}")
    return PluginHooks(registry)


def usage(count: int) -> ChunkUsage:
    return ChunkUsage(ids=torch.arange(count), last_used=torch.arange(count), retrievals=torch.zeros(count).long())


@pytest.fixture(params=["exact", "sqlite"])
def backend(request: Any, tmp_path: Path) -> Any:
    options = SqliteOptions(path=tmp_path / "memory.db")
    with ExactBackend(ExactOptions()) if request.param == "exact" else SqliteBackend(options) as backend:
        yield backend


def live(backend: MemoryBackend, *plugins: object) -> tuple[MemoryBank, ChunkBatch]:
    """Store, retrieve and evict; return the bank and the chunks that must be left."""
    bank = MemoryBank(backend, FifoEviction(), capacity=CAPACITY, hooks=hooks(*plugins))
    chunks = make_chunks(9)
    given = attrs.evolve(chunks, **{name: t.clone() for name, t in attrs.asdict(chunks, recurse=False).items()})
    bank.store("a", select(given, slice(0, 4)))
    retrieved = bank.retrieve("a", random_queries(2), 2)
    assert retrieved is not None
    assert_same_chunks(retrieved.chunks, select(chunks, retrieved.ids))
    bank.store("a", select(given, slice(4, 9)))
    assert_same_chunks(given, chunks)
    return bank, select(chunks, slice(9 - CAPACITY, 9))


@pytest.mark.parametrize("bad", [Raises(), Scribbles()], ids=["raises", "scribbles"])
def test_a_bad_plugin_harms_neither_memory_nor_other_plugins(backend: MemoryBackend, bad: object) -> None:
    alone = Observer()
    live(ExactBackend(ExactOptions()), alone)
    before, after = Observer(), Observer()
    bank, left = live(backend, before, bad, after)
    assert bank.ids("a").tolist() == [3, 4, 5, 6, 7, 8]
    assert_same_chunks(bank.fetch("a", bank.ids("a")), left)
    assert backend.count("a") == CAPACITY
    assert before.calls == after.calls == alone.calls
    assert {event for event, _, _ in alone.calls} == {"stored", "retrieved", "evicted"}
    assert bank.usage("a").retrievals.sum() <= 2


def test_a_plugin_is_told_how_much_how_long_and_where(backend: MemoryBackend) -> None:
    observer = Measures()
    registry = PluginRegistry()
    registry.register(observer, "measures")
    hooks = PluginHooks(registry, backend="tables")
    bank = MemoryBank(backend, FifoEviction(), capacity=CAPACITY, hooks=hooks)
    chunks = make_chunks(4)
    size = (chunks.embeddings.nbytes + chunks.keys.nbytes + chunks.values.nbytes) // 4
    name = SessionInfo(name="a/layer7").namespace(0)
    bank.store(name, chunks)
    bank.retrieve(name, random_queries(2), 2)
    bank.store(name, chunks)
    bank.store("~row1/layer0", select(chunks, slice(0, 1)))
    assert observer.calls == [
        ("opened", "tables"),
        ("stored", "a/layer7", "tables", 4 * size, 4, True),
        ("retrieved", "a/layer7", "tables", 2 * size, 4, True),
        ("stored", "a/layer7", "tables", 4 * size, 8, True),
        ("evict", "a/layer7", "tables", CAPACITY),
        ("evicted", "a/layer7", "tables", CAPACITY, True),
        ("stored", None, "tables", size, 1, True),
    ]
    (holdings,) = observer.holdings
    assert holdings() == Holdings(chunks=CAPACITY + 1, nbytes=bank.nbytes())


def test_what_a_bad_plugin_saw_is_durable(tmp_path: Path) -> None:
    options = SqliteOptions(path=tmp_path / "memory.db")
    bank, left = live(SqliteBackend(options), Raises(), Scribbles())
    bank.close()
    with SqliteBackend(options) as backend:
        assert backend.verify() == []
        assert_same_chunks(backend.fetch("a", backend.ids("a")), left)


def test_a_failure_is_logged_once_per_hook(backend: MemoryBackend, caplog: Any) -> None:
    bank, _ = live(backend, Raises())
    bank.store("a", make_chunks(1))
    assert [record.message for record in caplog.records] == [
        f"plugin 'plugin 0' failed in memcore_{hook}; later failures are not logged"
        for hook in ("opened", "stored", "retrieved", "evict", "evicted")
    ]


def test_an_interruption_is_no_failure_and_leaves_what_was_stored(backend: MemoryBackend) -> None:
    bank = MemoryBank(backend, FifoEviction(), capacity=CAPACITY, hooks=hooks(Interrupts()))
    chunks = make_chunks(2)
    with pytest.raises(KeyboardInterrupt):
        bank.store("a", chunks)
    assert_same_chunks(bank.fetch("a", bank.ids("a")), chunks)


def test_a_plugin_may_decide_what_goes(backend: MemoryBackend) -> None:
    bank, _ = live(backend, Decides(torch.tensor([8, 0, 5, 2])))
    assert bank.ids("a").tolist() == [1, 3, 4, 6, 7]
    assert_same_chunks(bank.fetch("a", bank.ids("a")), select(make_chunks(9), bank.ids("a")))


def test_the_first_plugin_with_an_opinion_decides() -> None:
    choice = hooks(Decides(torch.tensor([3])), Decides(None), Raises()).evict("a", usage(5), 4)
    assert choice is not None
    assert choice.tolist() == [3]


def test_nobody_decides_without_plugins() -> None:
    assert hooks().evict("a", usage(5), 4) is None


@pytest.mark.parametrize(
    ("choice", "problem"),
    [
        (torch.tensor([12, 0, 1]), "chose 1 ids that are not stored: 12"),
        (torch.arange(20, 30), "chose 10 ids that are not stored: 20, 21, 22, 23, 24, ..."),
        (torch.tensor([0, 0, 1]), "chose ids twice: 0"),
        (torch.tensor([0]), "chose 1 chunks to drop where at least 3 must go"),
        (torch.tensor([0.0, 1.0, 2.0]), "must return int64 [M], got torch.float32 [3]"),
        ([0, 1, 2], "must return int64 [M], got list"),
    ],
    ids=["unknown", "many unknown", "repeated", "too few", "floats", "list"],
)
def test_a_choice_that_will_not_do_is_passed_over(
    backend: MemoryBackend, caplog: Any, choice: Any, problem: str
) -> None:
    bank, left = live(backend, Decides(None), Decides(choice))
    assert_same_chunks(bank.fetch("a", bank.ids("a")), left)
    bank.store("a", make_chunks(4))
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (logging.ERROR, f"plugin 'plugin 1': memcore_evict {problem}; later failures are not logged")
    ]


def test_a_plugin_registered_later_is_heard() -> None:
    registry = PluginRegistry()
    told = PluginHooks(registry)
    observer = Observer()
    registry.register(observer, "late")
    told.stored("a", torch.arange(2), make_chunks(2), count=2, seconds=0.5)
    assert observer.calls == [("stored", "a", [0, 1])]
