"""Storing in a memory bank, retrieving, uses, eviction and hooks."""

from __future__ import annotations

import gc
import time

import attrs
import pytest
import torch
from memory_banks import QUERIES, Counting, Listener, fetch_all, make_bank

from memcore.bank_hooks import Holdings
from memcore.chunk import ChunkBatch
from memcore.errors import ChunkShapeError, ClosedError, ConfigError, PluginError
from memcore.testing import assert_same_chunks, make_chunks, select


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
