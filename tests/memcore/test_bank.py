from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING

import attrs
import pytest
import torch

from memcore.backend import Damage, MemoryBackend, PersistentBackend
from memcore.bank import MemoryBank
from memcore.bank_hooks import NO_HOOKS, Holdings
from memcore.chunk import ChunkBatch, SearchResult
from memcore.errors import (
    BackendError,
    ChunkShapeError,
    ClosedError,
    ConfigError,
    CorruptedError,
    PluginError,
    ReadOnlyError,
)
from memcore.eviction_policies import FifoEviction
from memcore.exact_backend import ExactBackend, ExactOptions
from memcore.testing import assert_same_chunks, make_chunks, select

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


def test_nothing_is_retrieved_from_nowhere() -> None:
    bank, _ = make_bank()
    assert bank.retrieve("a", QUERIES, 3) is None
    assert bank.count("a") == 0
    assert bank.ids("a").tolist() == []
    assert bank.nbytes("a") == 0
    assert bank.namespaces() == []


def test_few_chunks_are_all_retrieved_without_a_search() -> None:
    listener = Listener()
    bank, backend = make_bank(hooks=listener)
    chunks = make_chunks(3)
    bank.store("a", chunks)
    assert_same_chunks(fetch_all(bank, "a"), chunks)
    assert backend.searches == 0
    assert listener.results == [None]


def test_retrieved_chunks_are_in_document_order() -> None:
    bank, _ = make_bank()
    chunks = attrs.evolve(make_chunks(6), starts=torch.tensor([50, 10, 40, 30, 20, 30]))
    bank.store("a", chunks)
    whole = bank.retrieve("a", QUERIES, 10)
    some = bank.retrieve("a", QUERIES, 4)
    assert whole is not None
    assert some is not None
    assert whole.ids.tolist() == [1, 4, 3, 5, 2, 0]
    assert some.ids.tolist() == [id_ for id_ in whole.ids.tolist() if id_ in some.ids.tolist()]
    assert len(some) == 4
    assert_same_chunks(some.chunks, select(chunks, some.ids))


def test_the_chunks_with_the_best_products_are_retrieved() -> None:
    bank, _ = make_bank()
    vectors = torch.zeros(5, 1, 5)
    vectors[:, 0, 0] = torch.tensor([1.0, 9.0, 3.0, 8.0, 2.0])
    bank.store("a", attrs.evolve(make_chunks(5, vectors=1), embeddings=vectors))
    found = bank.retrieve("a", torch.eye(5)[:1], 2)
    assert found is not None
    assert found.ids.tolist() == [1, 3]


def test_rescoring_chooses_among_the_candidates() -> None:
    bank, backend = make_bank()
    vectors = torch.zeros(6, 1, 5)
    vectors[:, 0, 0] = torch.arange(6.0)
    bank.store("a", attrs.evolve(make_chunks(6, vectors=1), embeddings=vectors))
    seen: list[int] = []

    def oldest_first(chunks: ChunkBatch) -> torch.Tensor:
        seen.extend(chunks.starts.tolist())
        return -chunks.starts.float()

    found = bank.retrieve("a", torch.eye(5)[:1], 2, candidates=4, rescore=oldest_first)
    assert found is not None
    assert found.ids.tolist() == [2, 3]
    assert sorted(seen) == [6, 9, 12, 15]
    assert backend.searches == 1


def test_rescoring_sees_all_without_a_search_when_they_are_few() -> None:
    bank, backend = make_bank()
    bank.store("a", make_chunks(5))
    found = bank.retrieve("a", QUERIES, 2, candidates=5, rescore=lambda chunks: chunks.starts.float())
    assert found is not None
    assert found.ids.tolist() == [3, 4]
    assert backend.searches == 0


def test_equal_or_undefined_scores_keep_the_oldest() -> None:
    bank, _ = make_bank()
    bank.store("a", make_chunks(4))
    scores = torch.tensor([float("nan"), 1.0, 1.0, 1.0])
    found = bank.retrieve("a", QUERIES, 2, candidates=4, rescore=lambda _: scores)
    assert found is not None
    assert found.ids.tolist() == [1, 2]


def test_arguments_that_make_no_sense_are_refused() -> None:
    bank, _ = make_bank()
    bank.store("a", make_chunks(4))
    with pytest.raises(ConfigError, match="top_k"):
        bank.retrieve("a", QUERIES, 0)
    with pytest.raises(ConfigError, match="candidates"):
        bank.retrieve("a", QUERIES, 3, candidates=2)
    with pytest.raises(ConfigError, match="candidates"):
        bank.retrieve("a", QUERIES, 3, rescore=lambda chunks: chunks.starts.float())
    with pytest.raises(ChunkShapeError, match="rescore"):
        bank.retrieve("a", QUERIES, 1, candidates=3, rescore=lambda _: torch.zeros(1, 1))
    with pytest.raises(ConfigError, match="capacity"):
        make_bank(capacity=0)


def test_uses_are_counted() -> None:
    bank, _ = make_bank()
    bank.store("a", make_chunks(2))
    bank.store("a", make_chunks(2, seed=1, start=100))
    bank.retrieve("a", QUERIES, 10)
    some = bank.retrieve("a", QUERIES, 1)
    assert some is not None
    usage = bank.usage("a")
    chosen = int(some.ids[0])
    assert usage.ids.tolist() == [0, 1, 2, 3]
    assert usage.retrievals.tolist() == [2 if id_ == chosen else 1 for id_ in range(4)]
    assert usage.last_used.tolist() == [4 if id_ == chosen else 3 for id_ in range(4)]


def test_a_chunk_never_retrieved_was_last_used_when_stored() -> None:
    bank, _ = make_bank()
    for start in (0, 10):
        bank.store("a", make_chunks(1, start=start))
    assert bank.usage("a").last_used.tolist() == [1, 2]
    assert bank.usage("a").retrievals.tolist() == [0, 0]


def test_what_is_over_capacity_is_evicted_with_its_uses() -> None:
    listener = Listener()
    bank, backend = make_bank(capacity=3, hooks=listener)
    bank.store("a", make_chunks(3))
    bank.retrieve("a", QUERIES, 3)
    chunks = make_chunks(2, seed=1, start=100)
    assert bank.store("a", chunks).tolist() == [3, 4]
    assert bank.ids("a").tolist() == [2, 3, 4]
    assert backend.count("a") == 3
    assert bank.usage("a").retrievals.tolist() == [1, 0, 0]
    assert_same_chunks(select(fetch_all(bank, "a"), slice(1, None)), chunks)
    assert [event for event, _, _ in listener.events[:4]] == ["stored", "retrieved", "stored", "evicted"]
    assert listener.events[3] == ("evicted", "a", [0, 1])


def test_hooks_are_told_how_many_chunks_there_are_and_how_long_it_took() -> None:
    class Slow(Counting):
        def store(self, namespace: str, chunks: ChunkBatch) -> torch.Tensor:
            time.sleep(0.02)
            return super().store(namespace, chunks)

    listener = Listener()
    bank, _ = make_bank(capacity=3, hooks=listener, backend=Slow())
    bank.store("a", make_chunks(3))
    bank.retrieve("a", QUERIES, 3)
    bank.store("a", make_chunks(2, start=100))
    assert [count for count, _ in listener.measured] == [3, 3, 5, 3]
    stored, retrieved, again, evicted = (seconds for _, seconds in listener.measured)
    assert min(stored, again) >= 0.02
    assert retrieved > 0
    assert evicted > 0


def test_what_a_bank_holds_can_be_asked_until_it_is_closed() -> None:
    listener = Listener()
    bank, backend = make_bank(hooks=listener)
    bank.store("a", make_chunks(3))
    bank.fork("a", "b")
    bank.store("b", make_chunks(1, start=100))
    assert listener.holdings() == Holdings(chunks=4, nbytes=backend.nbytes())  # what is shared counts once
    bank.close()
    assert listener.holdings() is None


def test_asking_what_a_bank_holds_does_not_keep_it_alive() -> None:
    listener = Listener()
    bank, _ = make_bank(hooks=listener)
    del bank
    gc.collect()
    assert listener.holdings() is None


def test_a_hook_may_decide_what_goes() -> None:
    bank, _ = make_bank(capacity=3, hooks=Listener(choice=torch.tensor([3, 1])))
    bank.store("a", make_chunks(4))
    assert bank.ids("a").tolist() == [0, 2]


@pytest.mark.parametrize(
    ("choice", "problem"),
    [
        (torch.tensor([7, 0]), "not stored"),
        (torch.tensor([1, 1]), "twice"),
        (torch.tensor([1]), "at least 2"),
        (torch.tensor([1.0, 2.0]), "int64"),
        (torch.tensor([[1, 2]]), "int64"),
        ([1, 2], "list"),
    ],
    ids=["unknown", "repeated", "too few", "floats", "matrix", "list"],
)
def test_a_choice_that_will_not_do_is_refused_and_nothing_goes(choice: torch.Tensor, problem: str) -> None:
    bank, backend = make_bank(capacity=2, hooks=Listener(choice=choice))
    with pytest.raises(PluginError, match=problem):
        bank.store("a", make_chunks(4))
    assert bank.count("a") == backend.count("a") == 4


def test_a_refused_store_changes_nothing() -> None:
    bank, _ = make_bank()
    bank.store("a", make_chunks(1))
    with pytest.raises(ChunkShapeError):
        bank.store("a", make_chunks(1, size=6))
    assert bank.ids("a").tolist() == [0]
    broken = make_chunks(1)
    broken.embeddings.fill_(float("nan"))
    with pytest.raises(RuntimeError):
        bank.store("b", broken)
    assert bank.namespaces() == ["a"]


def test_a_fork_is_alike_and_copies_nothing() -> None:
    bank, backend = make_bank()
    bank.store("a", make_chunks(4))
    bank.retrieve("a", QUERIES, 1)
    before = bank.usage("a").retrievals
    bank.fork("a", "b")
    bank.retrieve("b", QUERIES, 4)
    assert backend.copies == 0
    assert bank.nbytes() == bank.nbytes("a") == bank.nbytes("b")
    assert torch.equal(bank.ids("a"), bank.ids("b"))
    assert torch.equal(bank.usage("a").retrievals, before)
    assert torch.equal(bank.usage("b").retrievals, before + 1)
    assert bank.namespaces() == ["a", "b"]


@pytest.mark.parametrize("writer", ["a", "b"])
def test_a_write_parts_a_fork_and_copies_nothing(writer: str) -> None:
    bank, backend = make_bank(capacity=4)
    bank.store("a", make_chunks(6))  # so the ids are 2 to 5
    bank.fork("a", "b")
    bank.store(writer, make_chunks(1, seed=9, start=100))
    other = "b" if writer == "a" else "a"
    assert bank.ids(writer).tolist() == [3, 4, 5, 6]
    assert bank.ids(other).tolist() == [2, 3, 4, 5]
    assert_same_chunks(fetch_all(bank, other), select(make_chunks(6), slice(2, None)))
    assert_same_chunks(select(fetch_all(bank, writer), slice(3, None)), make_chunks(1, seed=9, start=100))
    bank.store(writer, make_chunks(1, seed=10, start=200))
    assert bank.ids(writer).tolist() == [4, 5, 6, 7]
    assert backend.copies == 0


def test_a_search_finds_the_best_of_what_a_fork_has() -> None:
    bank, _ = make_bank()
    vectors = torch.zeros(8, 1, 5)
    vectors[:, 0, 0] = torch.arange(8.0)
    chunks = attrs.evolve(make_chunks(8, vectors=1), embeddings=vectors)
    query = torch.eye(5)[:1]
    bank.store("a", select(chunks, slice(0, 4)))
    bank.fork("a", "b")
    bank.store("a", select(chunks, slice(4, 6)))  # better, and not b's
    bank.store("b", select(chunks, slice(6, 7)))
    bank.store("b", attrs.evolve(select(chunks, slice(7, 8)), embeddings=-vectors[7:]))
    for name, best in (("a", [12, 15]), ("b", [9, 18])):
        found = bank.retrieve(name, query, 2)
        assert found is not None
        assert found.chunks.starts.tolist() == best


def test_what_a_fork_forgets_stays_for_the_other_and_goes_with_it() -> None:
    bank, backend = make_bank(capacity=4)
    bank.store("a", make_chunks(4))
    bank.fork("a", "b")
    bank.store("b", make_chunks(3, seed=1, start=100))
    assert bank.ids("b").tolist() == [3, 4, 5, 6]
    assert_same_chunks(fetch_all(bank, "a"), make_chunks(4))
    assert backend.nbytes() > bank.nbytes("a")
    bank.drop("a")
    assert [backend.count(name) for name in backend.namespaces()] == [1, 3]


def test_forks_of_forks_read_a_bounded_number_of_shelves() -> None:
    bank, backend = make_bank()
    bank.store("0", make_chunks(1))
    for number in range(30):
        bank.fork(str(number), str(number + 1))
        bank.store(str(number + 1), make_chunks(1, seed=number + 1, start=10 * (number + 1)))
        if number % 2:
            bank.drop(str(number))
    last = fetch_all(bank, "30")
    assert last.starts.tolist() == [10 * number for number in range(31)]
    assert_same_chunks(select(last, slice(17, 18)), make_chunks(1, seed=17, start=170))
    for name in bank.namespaces():
        bank.drop(name)
    assert backend.namespaces() == []


def test_a_fork_outlives_its_source() -> None:
    bank, backend = make_bank()
    chunks = make_chunks(3)
    bank.store("a", chunks)
    bank.fork("a", "b")
    bank.drop("a")
    assert bank.namespaces() == ["b"]
    assert bank.count("a") == 0
    bank.store("a", make_chunks(1, seed=4, size=9))
    assert_same_chunks(fetch_all(bank, "b"), chunks)
    assert bank.ids("a").tolist() == [0]
    bank.drop("b")
    bank.drop("a")
    assert backend.nbytes() == 0
    assert backend.copies == 0


def test_a_fork_replaces_its_target() -> None:
    bank, backend = make_bank()
    bank.store("a", make_chunks(2))
    bank.store("b", make_chunks(3, size=9))
    bank.fork("a", "b")
    bank.fork("a", "b")
    bank.fork("b", "a")
    bank.fork("a", "a")
    assert bank.count("b") == 2
    assert backend.nbytes() == bank.nbytes("a")
    bank.fork("nowhere", "b")
    assert bank.namespaces() == ["a"]


def test_forks_in_a_circle_swap_namespaces() -> None:
    bank, backend = make_bank(backend=Persistent())
    one, two = make_chunks(2, seed=1), make_chunks(3, seed=2)
    bank.store("a", one)
    bank.store("b", two)
    swap(bank, "a", "b")
    assert backend.copies == 0
    assert_same_chunks(fetch_all(bank, "a"), two)
    assert_same_chunks(fetch_all(bank, "b"), one)


def test_a_persistent_backend_knows_every_namespace_by_its_name_in_the_end() -> None:
    backend = Persistent()
    bank, _ = make_bank(backend=backend)
    batches = {name: make_chunks(2, seed=seed) for seed, name in enumerate("abc")}
    for name, chunks in batches.items():
        bank.store(name, chunks)
    swap(bank, "a", "b")
    bank.fork("c", "d")
    bank.fork("c", "e")
    bank.store("c", make_chunks(1, seed=8, start=100))
    bank.close()
    assert backend.namespaces() == ["a", "b", "c", "d", "e"]
    again, _ = make_bank(backend=backend)
    assert again.namespaces() == ["a", "b", "c", "d", "e"]
    assert again.count("c") == 3
    for name, source in (("a", "b"), ("b", "a"), ("d", "c"), ("e", "c")):
        assert_same_chunks(fetch_all(again, name), batches[source])


def test_what_a_backend_in_memory_was_loaded_with_is_there() -> None:
    backend = Counting()
    backend.store("a", make_chunks(3))
    backend.store("~left", make_chunks(2))
    bank, _ = make_bank(backend=backend)
    assert bank.namespaces() == backend.namespaces() == ["a"]
    assert bank.store("a", make_chunks(1, seed=1, start=50)).tolist() == [3]
    found = bank.retrieve("a", QUERIES, 4)
    assert found is not None
    assert found.ids.tolist() == [0, 1, 2, 3]


def test_what_a_persistent_backend_brings_along_is_there() -> None:
    backend = Persistent()
    backend.evict("a", backend.store("a", make_chunks(3))[:1])
    bank, _ = make_bank(backend=backend)
    assert bank.namespaces() == ["a"]
    assert bank.ids("a").tolist() == [1, 2]
    assert bank.usage("a").retrievals.tolist() == [0, 0]
    assert bank.store("a", make_chunks(1)).tolist() == [3]


def test_uses_outlive_the_bank() -> None:
    backend = Persistent()
    bank, _ = make_bank(backend=backend)
    bank.store("a", make_chunks(4))
    bank.retrieve("a", QUERIES, 2)
    bank.store("b", make_chunks(1))
    before = {name: bank.usage(name) for name in "ab"}
    bank.close()
    again, _ = make_bank(backend=backend)
    for name, usage in before.items():
        for field, value in attrs.asdict(again.usage(name), recurse=False).items():
            assert torch.equal(value, getattr(usage, field)), (name, field)
    again.store("a", make_chunks(1, seed=1))
    assert again.usage("a").last_used[-1] > before["b"].last_used[0]  # the clock goes on
    assert again.ids("a").tolist() == [0, 1, 2, 3, 4]


def test_chunks_committed_after_the_uses_were_written_are_taken_in() -> None:
    backend = Persistent()
    bank, _ = make_bank(backend=backend)
    bank.store("a", make_chunks(2))
    bank.retrieve("a", QUERIES, 2)
    bank.flush()
    backend.store("a", make_chunks(2, seed=1))  # as if the process was killed before it wrote down the rest
    again, _ = make_bank(backend=backend)
    assert again.ids("a").tolist() == [0, 1, 2, 3]
    assert again.usage("a").retrievals.tolist() == [1, 1, 0, 0]
    again.truncate("a", 2)
    assert again.ids("a").tolist() == [0, 1]
    assert backend.count("a") == 2
    assert again.store("a", make_chunks(1)).tolist() == [2]


def test_a_damaged_record_of_uses_is_named() -> None:
    backend = Persistent()
    bank, _ = make_bank(backend=backend)
    bank.store("a", make_chunks(2))
    bank.close()
    backend.records["usage/a"] = backend.records["usage/a"][:-1]
    again, _ = make_bank(backend=backend)
    with pytest.raises(CorruptedError, match="'a'"):
        again.count("a")


def test_a_namespace_that_was_emptied_goes_on() -> None:
    bank, _ = make_bank()
    bank.store("a", make_chunks(3))
    bank.truncate("a", 0)
    assert bank.count("a") == 0
    bank.truncate("a", 0)
    assert bank.next_id("a") == 0
    assert bank.store("a", make_chunks(2)).tolist() == [0, 1]
    assert bank.ids("a").tolist() == [0, 1]


def test_what_a_fork_forgot_does_not_come_back() -> None:
    backend = Persistent()
    bank, _ = make_bank(capacity=4, backend=backend)
    bank.store("a", make_chunks(4))
    bank.fork("a", "~question")
    bank.store("a", make_chunks(1, seed=1, start=100))
    bank.flush()  # and then the process is killed
    again, _ = make_bank(backend=backend)
    assert again.ids("a").tolist() == [1, 2, 3, 4]
    assert backend.count("a") == 4


def test_the_newest_that_were_taken_back_do_not_come_back() -> None:
    backend = Persistent()
    bank, _ = make_bank(backend=backend)
    bank.store("a", make_chunks(3))
    bank.fork("a", "~question")
    bank.store("a", make_chunks(2, seed=1, start=100))
    bank.truncate("a", 3)
    bank.flush()  # and then the process is killed
    again, _ = make_bank(backend=backend)
    assert again.ids("a").tolist() == [0, 1, 2]
    assert backend.count("a") == 3
    assert again.next_id("a") == 3


def test_a_namespace_that_was_emptied_is_still_there_in_the_next_bank() -> None:
    backend = Persistent()
    bank, _ = make_bank(backend=backend)
    bank.store("~question", make_chunks(2))
    bank.truncate("~question", 0)
    bank.fork("~question", "a")
    bank.close()
    again, _ = make_bank(backend=backend)
    assert again.namespaces() == ["a"]
    assert again.next_id("a") == 0
    again.drop("a")
    assert again.namespaces() == []
    assert backend.record_names() == []


def test_temporary_namespaces_are_not_kept() -> None:
    backend = Persistent()
    bank, _ = make_bank(backend=backend)
    bank.store("a", make_chunks(2))
    bank.fork("a", "~question")
    bank.store("~question", make_chunks(1, start=50))
    bank.flush()
    assert backend.namespaces() == ["a", "~question"]
    assert backend.record_names() == ["usage/a"]
    again, _ = make_bank(backend=backend)
    assert again.namespaces() == ["a"]
    assert backend.namespaces() == ["a"]


def test_what_was_dropped_while_a_fork_reads_it_is_not_kept_under_its_name() -> None:
    backend = Persistent()
    bank, _ = make_bank(backend=backend)
    bank.store("a", make_chunks(2))
    bank.flush()
    bank.fork("a", "~question")
    bank.drop("a")
    bank.flush()
    assert [name for name in backend.namespaces() if not name.startswith("~")] == []
    assert backend.record_names() == []
    assert_same_chunks(fetch_all(bank, "~question"), make_chunks(2))


def test_a_read_only_bank_answers_and_changes_nothing() -> None:
    backend = Persistent()
    bank, _ = make_bank(backend=backend)
    bank.store("a", make_chunks(3))
    bank.close()
    records = dict(backend.records)
    backend.read_only = True
    reader, _ = make_bank(backend=backend, capacity=3)
    reader.fork("a", "~question")
    reader.store("~question", make_chunks(2, seed=1, start=100))
    assert reader.ids("~question").tolist() == [2, 3, 4]
    assert_same_chunks(select(fetch_all(reader, "~question"), slice(1, None)), make_chunks(2, seed=1, start=100))
    some = reader.retrieve("~question", QUERIES, 2)
    assert some is not None
    assert set(some.ids.tolist()) <= {2, 3, 4}
    for change in (
        lambda: reader.store("a", make_chunks(1)),
        lambda: reader.drop("a"),
        lambda: reader.fork("~question", "b"),
        lambda: reader.truncate("a", 0),
    ):
        with pytest.raises(ReadOnlyError, match="read-only"):
            change()
    reader.close()
    assert backend.count("a") == 3
    assert backend.namespaces() == ["a"]
    assert backend.records == records


def test_a_read_only_bank_sees_what_another_adds_when_it_looks_anew() -> None:
    backend = Persistent()
    writer, _ = make_bank(backend=backend)
    writer.store("a", make_chunks(3))
    writer.flush()
    backend.read_only = True
    reader, _ = make_bank(backend=backend)
    assert reader.count("a") == 3
    writer.store("a", make_chunks(5, seed=1, start=50))
    writer.flush()
    found = reader.retrieve("a", QUERIES, 2)
    assert found is not None
    assert set(found.ids.tolist()) <= {0, 1, 2}
    assert len(found) == 2
    reader.reload("a")
    assert reader.count("a") == 8


def test_a_read_only_bank_shows_what_was_there_before_an_id() -> None:
    backend = Persistent()
    writer, _ = make_bank(backend=backend)
    writer.store("a", make_chunks(5))
    writer.flush()
    backend.read_only = True
    reader, _ = make_bank(backend=backend)
    reader.reload("a", 3)
    assert reader.ids("a").tolist() == [0, 1, 2]
    found = reader.retrieve("a", QUERIES, 3)
    assert found is not None
    assert found.ids.tolist() == [0, 1, 2]


def test_a_read_only_bank_misses_what_another_evicts() -> None:
    backend = Persistent()
    writer, _ = make_bank(backend=backend)
    writer.store("a", make_chunks(4))
    writer.flush()
    backend.read_only = True
    reader, _ = make_bank(backend=backend)
    reader.fork("a", "~question")
    reader.store("~question", make_chunks(1, seed=1, start=50))
    assert reader.count("a") == 4
    backend.store("a", make_chunks(2, seed=2, start=90))
    backend.evict("a", torch.tensor([1, 2]))
    for name, left in (("a", [0, 3]), ("~question", [0, 3, 4])):
        for top_k in (2, 5):
            found = reader.retrieve(name, QUERIES[:1], top_k)
            assert found is not None
            assert len(found) == min(top_k, len(left))
            assert set(found.ids.tolist()) <= set(left)


def test_a_bank_that_cannot_be_flushed_stays_open() -> None:
    class Full(Persistent):
        full = True

        def flush(self) -> None:
            if self.full:
                raise BackendError("no room")

    backend = Full()
    bank, _ = make_bank(backend=backend)
    bank.store("a", make_chunks(2))
    with pytest.raises(BackendError, match="no room"):
        bank.close()
    assert bank.count("a") == 2
    backend.full = False
    bank.close()
    assert bank.closed


def test_nothing_is_left_of_a_move_that_failed() -> None:
    class Failing(Persistent):
        fails_after = 1000

        def store(self, namespace: str, chunks: ChunkBatch) -> torch.Tensor:
            self.fails_after -= 1
            if self.fails_after < 0:
                raise BackendError("no room")
            return super().store(namespace, chunks)

    backend = Failing()
    bank, _ = make_bank(backend=backend)
    bank.store("a", make_chunks(300))
    bank.fork("a", "b")
    bank.store("a", make_chunks(300, seed=1, start=5000))  # so that b is moved chunk by chunk, in two batches
    backend.fails_after = 1
    with pytest.raises(BackendError, match="no room"):
        bank.flush()
    assert backend.namespaces() == ["a"]
    backend.fails_after = 1000
    bank.flush()
    assert {name: backend.count(name) for name in backend.namespaces()} == {"a": 600, "b": 300}


def test_what_is_discarded_in_the_middle_of_a_call_goes_after_it() -> None:
    class Collector(Listener):
        def stored(self, namespace: str, ids: torch.Tensor, chunks: ChunkBatch, *, count: int, seconds: float) -> None:
            if namespace == "b":
                bank.discard(["a", "b"])
                assert backend.namespaces() == ["a", "b"]

    bank, backend = make_bank(hooks=Collector())
    bank.store("a", make_chunks(1))
    bank.store("b", make_chunks(1))
    assert bank.namespaces() == []
    bank.store("a", make_chunks(1))
    bank.discard(["a"])
    assert backend.namespaces() == []
    bank.close()
    bank.discard(["a"])


def test_closing_closes_the_backend() -> None:
    bank, backend = make_bank()
    bank.store("a", make_chunks(1))
    bank.close()
    bank.close()
    assert bank.closed
    with pytest.raises(ClosedError):
        bank.count("a")
    with pytest.raises(ClosedError):
        bank.store("a", make_chunks(1))
    with pytest.raises(ClosedError):
        backend.ids("a")


def test_inference_mode_and_training_mix() -> None:
    bank, _ = make_bank(capacity=3)
    with torch.inference_mode():
        bank.store("a", make_chunks(3))
        bank.retrieve("a", QUERIES, 2)
        bank.fork("a", "b")
    for name in "ab":
        bank.retrieve(name, QUERIES, 2)
        bank.store(name, make_chunks(1, seed=2))
        found = bank.retrieve(name, QUERIES, 2)
        assert found is not None
        weight = torch.ones(1, requires_grad=True)
        torch.autograd.grad((found.chunks.keys * weight).sum(), weight)


def swap(bank: MemoryBank, one: str, two: str) -> None:
    bank.fork(one, "spare")
    bank.fork(two, one)
    bank.fork("spare", two)
    bank.drop("spare")


def test_a_namespace_can_be_restored_in_another_bank_ids_and_uses_included() -> None:
    (source, _), (target, _) = make_bank(capacity=6), make_bank(capacity=6)
    for seed in range(4):
        source.store("a", make_chunks(3, seed=seed))
        source.retrieve("a", QUERIES[:1], 2)
    usage = source.usage("a")
    target.store("b", make_chunks(2, seed=9))
    target.restore("b", source.fetch("a", usage.ids), usage, source.next_id("a"))
    for field in ("ids", "last_used", "retrievals"):
        assert torch.equal(getattr(target.usage("b"), field), getattr(usage, field))
    assert_same_chunks(target.fetch("b", usage.ids), source.fetch("a", usage.ids))
    assert torch.equal(target.store("b", make_chunks(5, seed=7)), source.store("a", make_chunks(5, seed=7)))
    assert torch.equal(target.ids("b"), source.ids("a"))
