"""Namespaces of a memory bank that share chunks."""

from __future__ import annotations

import attrs
import pytest
import torch
from memory_banks import QUERIES, Persistent, fetch_all, make_bank, swap

from memcore.testing import assert_same_chunks, make_chunks, select


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
