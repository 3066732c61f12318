"""What outlives a memory bank, and goes to another."""

from __future__ import annotations

import attrs
import pytest
import torch
from memory_banks import QUERIES, Counting, Persistent, fetch_all, make_bank, swap

from memcore.bank import MemoryBank
from memcore.chunk import ChunkBatch
from memcore.errors import BackendError, CorruptedError, ReadOnlyError
from memcore.testing import assert_same_chunks, make_chunks, select


def writer_and_reader(chunks: ChunkBatch) -> tuple[MemoryBank, MemoryBank]:
    """Return a bank that has kept these chunks in namespace ``a``, and one that can only read what that one keeps."""
    backend = Persistent()
    writer, _ = make_bank(backend=backend)
    writer.store("a", chunks)
    writer.flush()
    backend.read_only = True
    reader, _ = make_bank(backend=backend)
    return writer, reader


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
    writer, reader = writer_and_reader(make_chunks(3))
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
    _, reader = writer_and_reader(make_chunks(5))
    reader.reload("a", 3)
    assert reader.ids("a").tolist() == [0, 1, 2]
    found = reader.retrieve("a", QUERIES, 3)
    assert found is not None
    assert found.ids.tolist() == [0, 1, 2]


def test_a_read_only_bank_misses_what_another_evicts() -> None:
    writer, reader = writer_and_reader(make_chunks(4))
    backend = writer.backend
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
