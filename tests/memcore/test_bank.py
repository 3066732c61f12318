from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import attrs
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from memcore.backend import Damage, MemoryBackend, PersistentBackend
from memcore.bank import NO_HOOKS, MemoryBank
from memcore.chunk import ChunkBatch, SearchResult
from memcore.errors import ChunkShapeError, ClosedError, ConfigError, PluginError
from memcore.eviction_policies import FifoEviction
from memcore.exact_backend import ExactBackend, ExactOptions
from memcore.testing import assert_same_chunks, make_chunks, select

if TYPE_CHECKING:
    from collections.abc import Callable

    from memcore.bank import Hooks
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
        self.choice = choice

    def stored(self, namespace: str, ids: torch.Tensor, chunks: ChunkBatch) -> None:
        assert len(chunks) == len(ids)
        self.events.append(("stored", namespace, ids.tolist()))

    def retrieved(self, namespace: str, ids: torch.Tensor, result: SearchResult | None) -> None:
        self.events.append(("retrieved", namespace, ids.tolist()))
        self.results.append(result)

    def evict(self, namespace: str, usage: ChunkUsage, capacity: int) -> torch.Tensor | None:
        return self.choice

    def evicted(self, namespace: str, ids: torch.Tensor) -> None:
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
def test_a_write_parts_a_fork_and_ids_stay(writer: str) -> None:
    bank, backend = make_bank(capacity=4)
    bank.store("a", make_chunks(6))  # so the ids are 2 to 5, and a copy in the backend begins at 0 again
    bank.fork("a", "b")
    bank.store(writer, make_chunks(1, seed=9, start=100))
    other = "b" if writer == "a" else "a"
    assert backend.copies == 1
    assert bank.ids(writer).tolist() == [3, 4, 5, 6]
    assert bank.ids(other).tolist() == [2, 3, 4, 5]
    assert_same_chunks(fetch_all(bank, other), select(make_chunks(6), slice(2, None)))
    found = bank.retrieve(writer, QUERIES, 2)
    assert found is not None
    assert set(found.ids.tolist()) <= {3, 4, 5, 6}
    bank.store(writer, make_chunks(1, seed=10, start=200))
    assert backend.copies == 1


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


def test_what_a_persistent_backend_brings_along_is_there() -> None:
    backend = Persistent()
    backend.evict("a", backend.store("a", make_chunks(3))[:1])
    bank, _ = make_bank(backend=backend)
    assert bank.namespaces() == ["a"]
    assert bank.ids("a").tolist() == [1, 2]
    assert bank.usage("a").retrievals.tolist() == [0, 0]
    assert bank.store("a", make_chunks(1)).tolist() == [3]


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


NAMES = st.sampled_from(["a", "b", "c"])


class Forks(RuleBasedStateMachine):
    """Forks, stores and drops as it pleases, and compares with banks of lists."""

    backend_class: ClassVar[type[Counting]] = Counting

    def __init__(self) -> None:
        super().__init__()
        self.bank, self.backend = make_bank(capacity=5, backend=self.backend_class())
        self.model: dict[str, dict[int, ChunkBatch]] = {}
        self.next_ids: dict[str, int] = {}
        self.seed = 0

    @rule(name=NAMES, count=st.integers(1, 4))
    def store(self, name: str, count: int) -> None:
        self.seed += 1
        chunks = make_chunks(count, seed=self.seed, start=100 * self.seed)
        first = self.next_ids.get(name, 0)
        ids = self.bank.store(name, chunks).tolist()
        assert ids == list(range(first, first + count))
        self.next_ids[name] = first + count
        held = self.model.setdefault(name, {})
        held.update({id_: select(chunks, slice(place, place + 1)) for place, id_ in enumerate(ids)})
        for id_ in list(held)[: max(0, len(held) - 5)]:
            del held[id_]

    @rule(old=NAMES, new=NAMES)
    def fork(self, old: str, new: str) -> None:
        self.bank.fork(old, new)
        if old != new:
            self.forget(new)
            if old in self.model:
                self.model[new] = dict(self.model[old])
                self.next_ids[new] = self.next_ids[old]

    @rule(name=NAMES)
    def drop(self, name: str) -> None:
        self.bank.drop(name)
        self.forget(name)

    @rule(name=NAMES, top_k=st.integers(1, 6))
    def retrieve(self, name: str, top_k: int) -> None:
        found = self.bank.retrieve(name, QUERIES, top_k)
        held = self.model.get(name, {})
        if found is None:
            assert not held
            return
        assert len(found) == min(top_k, len(held))
        for place, id_ in enumerate(found.ids.tolist()):
            assert_same_chunks(select(found.chunks, slice(place, place + 1)), held[id_])

    @rule()
    def flush(self) -> None:
        self.bank.flush()
        if isinstance(self.backend, PersistentBackend):
            assert self.backend.namespaces() == sorted(self.model)

    def forget(self, name: str) -> None:
        self.model.pop(name, None)
        self.next_ids.pop(name, None)

    @invariant()
    def agree(self) -> None:
        assert self.bank.namespaces() == sorted(self.model)
        for name, held in self.model.items():
            assert self.bank.ids(name).tolist() == list(held)
        assert len(self.backend.namespaces()) <= len(self.model)


class PersistentForks(Forks):
    backend_class = Persistent


Forks.TestCase.settings = PersistentForks.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None
)
TestForks = Forks.TestCase
TestPersistentForks = PersistentForks.TestCase
