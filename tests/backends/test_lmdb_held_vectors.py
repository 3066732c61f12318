"""Embeddings that the ``lmdb`` backend holds in memory: searches find the same with and without."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from memcore.errors import CorruptedError
from memcore.exact_backend import ExactBackend, ExactOptions
from memcore.testing import make_chunks, random_queries

pytest.importorskip("lmdb")

from lmdb_memories import open_at
from memcore_lmdb import block_writing, held_vectors
from memcore_lmdb.backend import LmdbBackend

if TYPE_CHECKING:
    from pathlib import Path

    from memcore.backend import MemoryBackend

CHUNK_BYTES = 2 * 5 * 4  # of the embeddings that make_chunks makes
NAMES = ("a", "b", "c")
CHANGES = ["store"] * 4 + ["evict"] * 3 + ["drop", "copy", "compact"]


def held(backend: LmdbBackend) -> dict[int, int]:
    """Return how many chunks of each namespace are held, by the namespace's number."""
    return {number: len(found.rows) for number, found in backend._held._held.items()}


def assert_finds_the_same(backend: MemoryBackend, other: MemoryBackend) -> None:
    for name in NAMES:
        for top_k in (1, 9, 200):
            got, want = (each.retrieve(name, random_queries(3), top_k) for each in (backend, other))
            assert torch.equal(got.ids, want.ids)
            torch.testing.assert_close(got.scores, want.scores)


@pytest.mark.parametrize("limit", [0, 70 * CHUNK_BYTES, 64 << 20])
def test_writer_and_reader_find_what_is_there_after_any_change(
    tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_writing, "BLOCK_BYTES", 8 * CHUNK_BYTES)
    monkeypatch.setattr(held_vectors, "_IDLE", 4)
    chance = random.Random(0)
    exact = ExactBackend(ExactOptions())
    with (
        open_at(tmp_path, hold_vectors=limit) as writer,
        open_at(tmp_path, hold_vectors=limit, read_only=True) as reader,
    ):
        for step in range(60):
            name, what = chance.choice(NAMES), chance.choice(CHANGES)
            if what == "store":
                chunks = make_chunks(chance.randint(1, 20), seed=step)
                assert torch.equal(writer.store(name, chunks), exact.store(name, chunks))
            elif what == "evict" and exact.count(name):
                ids = exact.ids(name)
                gone = ids[torch.rand(len(ids), generator=torch.Generator().manual_seed(step)) < chance.random()]
                writer.evict(name, gone)
                exact.evict(name, gone)
            elif what == "drop":
                writer.drop(name)
                exact.drop(name)
            elif what == "copy":
                writer.copy(name, "c")
                exact.copy(name, "c")
            elif what == "compact":
                writer.compact()
            assert_finds_the_same(writer, exact)
            if chance.random() < 0.5:
                writer.flush()
                assert_finds_the_same(reader, exact)
        for backend in (writer, reader):
            assert sum(found.room.nbytes for found in backend._held._held.values()) <= limit
            assert bool(held(backend)) == bool(limit)


def test_what_is_searched_by_turns_stays(tmp_path: Path) -> None:
    with open_at(tmp_path, hold_vectors=50 * CHUNK_BYTES) as backend:
        for name in NAMES:
            backend.store(name, make_chunks(20))
        backend.flush()
        for _ in range(3):
            for name in NAMES:
                backend.retrieve(name, random_queries(1), 1)
        assert held(backend) == {1: 20, 2: 20}


def test_what_is_idle_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_vectors, "_IDLE", 4)
    with open_at(tmp_path, hold_vectors=30 * CHUNK_BYTES) as backend:
        for name in NAMES:
            backend.store(name, make_chunks(20))
        backend.flush()
        backend.retrieve("a", random_queries(1), 1)
        for _ in range(5):
            backend.retrieve("b", random_queries(1), 1)
        assert held(backend) == {2: 20}
        backend.drop("b")
        backend.flush()
        assert held(backend) == {}


def test_what_grows_is_held_up_to_the_limit(tmp_path: Path) -> None:
    with open_at(tmp_path, hold_vectors=100 * CHUNK_BYTES) as backend:
        counts = []
        for more in (60, 30, 10, 1):
            backend.store("a", make_chunks(more))
            backend.flush()
            backend.retrieve("a", random_queries(1), 1)
            counts.append(held(backend))
            assert sum(found.room.nbytes for found in backend._held._held.values()) <= 100 * CHUNK_BYTES
        assert counts == [{1: 60}, {1: 90}, {1: 100}, {}]


def test_what_a_copy_takes_the_place_of_is_forgotten(tmp_path: Path) -> None:
    with open_at(tmp_path) as backend:
        for name in ("a", "b"):
            ids = backend.store(name, make_chunks(20))
            backend.flush()
            backend.retrieve(name, random_queries(1), 1)
            backend.fetch(name, ids)
        assert set(held(backend)) == set(backend._checks._seen) == {1, 2}
        backend.copy("a", "b")
        assert set(held(backend)) == set(backend._checks._seen) == {1}


def test_only_blocks_that_are_new_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_writing, "BLOCK_BYTES", 8 * CHUNK_BYTES)
    read = []
    with open_at(tmp_path) as backend:
        brought_up_to_date = backend._held._brought_up_to_date

        def counting(before: Any, namespace: Any, read_block: Any) -> Any:
            def counted(block: Any) -> Any:
                read.append(block.first)
                return read_block(block)

            return brought_up_to_date(before, namespace, counted)

        monkeypatch.setattr(backend._held, "_brought_up_to_date", counting)
        for _ in range(2):
            backend.store("a", make_chunks(40))
            backend.flush()
            for _ in range(2):
                backend.retrieve("a", random_queries(1), 1)
    assert read == list(range(0, 80, 8))


def test_damage_is_found_when_it_is_read_and_nothing_of_it_is_held(tmp_path: Path) -> None:
    with open_at(tmp_path) as backend:
        backend.store("a", make_chunks(4))
        backend.flush()
        found = backend._find("a")
        assert found is not None
        found.blocks[0].entries[1, 3] ^= 1
        for _ in range(2):
            with pytest.raises(CorruptedError, match="chunk 1"):
                backend.retrieve("a", random_queries(1), 1)
        assert held(backend) == {}
