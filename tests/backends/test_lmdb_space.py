"""Growth and limits of an ``lmdb`` memory, on disk and in the process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from memcore.errors import BackendError
from memcore.testing import assert_same_chunks, make_chunks, select

pytest.importorskip("lmdb")

from lmdb_memories import file_of, keys_of, open_at
from memcore_lmdb import copying
from memcore_lmdb.format import BLOCK, PAYLOAD, VECTORS

if TYPE_CHECKING:
    from pathlib import Path


class TestSpace:
    def test_the_map_grows(self, tmp_path: Path) -> None:
        chunks = make_chunks(40, width=64, key_size=64, value_size=64)
        with open_at(tmp_path, map_size=1 << 16) as backend:
            ids = [backend.store("a", chunks) for _ in range(4)]
            backend.flush()
            for own in ids:
                assert_same_chunks(backend.fetch("a", own), chunks)

    def test_it_grows_in_the_middle_of_a_transaction(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        chunks = make_chunks(40, width=64, key_size=64, value_size=64)
        with open_at(tmp_path, map_size=1 << 16) as backend:
            monkeypatch.setattr(backend._environment, "_make_room", lambda size: None)
            ids = backend.store("a", chunks)
            backend.flush()
            assert_same_chunks(backend.fetch("a", ids), chunks)
            assert backend.verify() == []

    def test_a_limit_is_kept_and_loses_nothing(self, tmp_path: Path) -> None:
        chunks = make_chunks(40, width=64, key_size=64, value_size=64)
        with open_at(tmp_path, map_size=1 << 16, max_map_size=1 << 20) as backend:
            kept = backend.store("a", make_chunks(2))
            backend.flush()
            ids = backend.store("b", chunks)
            backend.write_record("r", b"value")
            for _ in range(2):
                with pytest.raises(BackendError, match="max_map_size = 1048576"):
                    backend.flush()
                assert_same_chunks(backend.fetch("b", ids), chunks)
                assert_same_chunks(backend.fetch("a", kept), make_chunks(2))
            with open_at(tmp_path, read_only=True) as reader:
                assert reader.namespaces() == ["a"]
                assert reader.record_names() == []
            with pytest.raises(BackendError, match="max_map_size"):
                backend.close()
            backend.evict("b", ids[2:])
            backend.flush()
        with open_at(tmp_path) as backend:
            assert_same_chunks(backend.fetch("b", ids[:2]), select(chunks, slice(2)))
            assert backend.read_record("r") == b"value"

    @pytest.mark.parametrize("map_size", [1 << 16, 1 << 30])
    def test_no_opening_lets_the_file_grow_beyond_a_limit(self, tmp_path: Path, map_size: int) -> None:
        chunks = make_chunks(40, width=64, key_size=64, value_size=64)
        for _ in range(2):  # of a new file, and of one that is there
            with open_at(tmp_path, map_size=map_size, max_map_size=400_000) as backend:
                backend.store("a", make_chunks(2))
                backend.flush()
                backend.store("b", chunks)
                with pytest.raises(BackendError, match="max_map_size = 400000"):
                    backend.flush()
                backend.drop("b")
            assert file_of(tmp_path).stat().st_size <= 400_000
        with open_at(tmp_path) as backend:
            assert backend.count("a") == 4

    def test_a_file_that_is_larger_than_the_limit_is_opened_and_does_not_grow(self, tmp_path: Path) -> None:
        chunks = make_chunks(40, width=64, key_size=64, value_size=64)
        with open_at(tmp_path) as backend:
            ids = backend.store("a", chunks)
        size = file_of(tmp_path).stat().st_size
        with open_at(tmp_path, max_map_size=1 << 20) as backend:
            assert_same_chunks(backend.fetch("a", ids), chunks)
            backend.store("b", make_chunks(200, width=64, key_size=64, value_size=64))
            with pytest.raises(BackendError, match="max_map_size = 1048576"):
                backend.flush()
            backend.drop("b")
            backend.evict("a", ids[2:])
        assert 1 << 20 < file_of(tmp_path).stat().st_size == size
        with open_at(tmp_path, max_map_size=1 << 20) as backend:
            backend.compact()
            assert file_of(tmp_path).stat().st_size <= 1 << 20
            assert_same_chunks(backend.fetch("a", ids[:2]), select(chunks, slice(2)))

    def test_a_full_buffer_is_committed_before_more_is_taken(self, tmp_path: Path) -> None:
        chunks = make_chunks(10, width=64, key_size=64, value_size=64)
        with open_at(tmp_path, write_buffer=300_000) as backend, open_at(tmp_path, read_only=True) as reader:
            counts = []
            for _ in range(6):
                backend.store("a", chunks)
                counts.append(reader.count("a"))
            assert counts[0] == 0
            assert 0 < counts[-1] < 60
            assert backend.count("a") == 60
            assert torch.equal(
                backend.fetch("a", torch.arange(60)).keys[50:], backend.fetch("a", torch.arange(10)).keys
            )

    def test_a_store_that_cannot_make_room_stores_nothing(self, tmp_path: Path) -> None:
        chunks = make_chunks(40, width=64, key_size=64, value_size=64)
        with open_at(tmp_path, map_size=1 << 16, max_map_size=1 << 20, write_buffer=1 << 20) as backend:
            backend.store("a", chunks)
            before = backend.nbytes()
            with pytest.raises(BackendError, match="max_map_size"):
                backend.store("b", chunks)
            assert backend.namespaces() == ["a"]
            assert backend.nbytes() == before
            backend.evict("a", backend.ids("a")[2:])

    def test_evicted_space_is_used_again(self, tmp_path: Path) -> None:
        chunks = make_chunks(40, width=64, key_size=64, value_size=64)
        with open_at(tmp_path) as backend:
            for _ in range(3):
                backend.evict("a", backend.store("a", chunks))
                backend.store("a", chunks)
                backend.flush()
                backend.evict("a", backend.ids("a"))
                backend.flush()
            assert backend.disk_bytes() < 3.5 * sum(tensor.nbytes for tensor in (chunks.keys, chunks.values))

    def test_large_copies_are_made_in_steps(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(copying, "_STEP", 1000)
        chunks = make_chunks(50)
        with open_at(tmp_path) as backend:
            ids = backend.store("a", chunks)
            backend.evict("a", ids[::7])
            backend.store("b", make_chunks(1))
            backend.copy("a", "b")
            assert torch.equal(backend.ids("b"), backend.ids("a"))
            assert_same_chunks(backend.fetch("b", backend.ids("b")), backend.fetch("a", backend.ids("a")))
            assert backend.verify() == []

    def test_steps_of_a_copy_are_counted_by_the_bytes_of_what_they_copy(self, tmp_path: Path) -> None:
        with open_at(tmp_path) as backend:
            backend.store("a", make_chunks(50))
            backend.flush()
            found = backend._find("a")
            assert found is not None
            with backend._environment.read() as txn:
                sizes = {key: (len(txn.get(key)), size) for key, size in copying._keys(found)}
        assert {key[:1] for key in sizes} == {BLOCK, VECTORS, PAYLOAD}
        assert all(there == said for key, (there, said) in sizes.items() if key[:1] != BLOCK)

    def test_a_copy_that_fails_changes_nothing(self, tmp_path: Path) -> None:
        chunks = make_chunks(20, width=64, key_size=64, value_size=64)
        with open_at(tmp_path, map_size=1 << 16, max_map_size=1 << 20) as backend:
            backend.store("a", chunks)
            backend.store("b", make_chunks(2))
            backend.flush()
            with pytest.raises(BackendError, match="max_map_size"):
                backend.copy("a", "b")
            assert_same_chunks(backend.fetch("b", backend.ids("b")), make_chunks(2))
            assert backend.namespaces() == ["a", "b"]
            assert backend.verify() == []
        assert len(keys_of(tmp_path, PAYLOAD)) == 22
        assert keys_of(tmp_path, b"u") == []


def test_memory_of_what_was_committed_is_used_again_and_given_back(tmp_path: Path) -> None:
    chunks = make_chunks(200, width=256, key_size=64, value_size=64)
    with open_at(tmp_path, write_buffer=16 << 20) as backend:
        ids = backend.store("a", chunks)
        backend.flush()
        kept = backend._arena._slabs[0]
        assert 0 < sum(slab.nbytes for slab in backend._arena._slabs) <= 16 << 20
        more = backend.store("a", make_chunks(2, seed=1, width=256, key_size=64, value_size=64))
        assert backend._arena._slabs[0] is kept
        assert_same_chunks(backend.fetch("a", ids), chunks)
        assert_same_chunks(backend.fetch("a", more), make_chunks(2, seed=1, width=256, key_size=64, value_size=64))
