"""Files and folders that the ``lmdb`` backend opens or refuses, and several instances on one."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from memcore.errors import BackendError, CorruptedError
from memcore.testing import assert_same_chunks, make_chunks, select

pytest.importorskip("lmdb")

import lmdb
from lmdb_memories import change, file_of, open_at

if TYPE_CHECKING:
    from pathlib import Path


class TestFiles:
    def test_another_version_is_refused(self, tmp_path: Path) -> None:
        open_at(tmp_path).close()
        change(tmp_path, b"memcore", lambda value: value.__setitem__(slice(None), value.replace(b": 1", b": 7")))
        for read_only in (True, False):
            with pytest.raises(CorruptedError, match="version 7"):
                open_at(tmp_path, read_only=read_only)

    def test_an_lmdb_file_of_another_program_is_refused(self, tmp_path: Path) -> None:
        with lmdb.open(str(tmp_path / "memory-000001.lmdb"), subdir=False) as env, env.begin(write=True) as txn:
            txn.put(b"key", b"value")
        for read_only in (True, False):
            with pytest.raises(CorruptedError, match="no memory"):
                open_at(tmp_path, read_only=read_only)

    @pytest.mark.parametrize("name", ["data.mdb", "notes.txt"])
    def test_a_folder_with_other_files_is_refused_and_left_alone(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"something")
        with pytest.raises(CorruptedError, match=name):
            open_at(tmp_path)
        with pytest.raises(BackendError):
            open_at(tmp_path, read_only=True)
        assert os.listdir(tmp_path) == [name]

    @pytest.mark.parametrize("content", [b"x" * 100, b"x" * 100_000])
    def test_a_file_that_is_none_is_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "memory-000001.lmdb").write_bytes(content)
        for read_only in (True, False):
            with pytest.raises(CorruptedError, match=r"memory-000001\.lmdb"):
                open_at(tmp_path, read_only=read_only)

    def test_a_file_cut_short_is_refused(self, tmp_path: Path) -> None:
        with open_at(tmp_path) as backend:
            backend.store("a", make_chunks(100, width=50))
        os.truncate(file_of(tmp_path), 50_000)
        for read_only in (True, False):
            with pytest.raises(CorruptedError, match="cut short"):
                open_at(tmp_path, read_only=read_only)

    def test_a_path_that_is_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        for read_only in (True, False):
            with pytest.raises(BackendError, match="folder"):
                open_at(tmp_path / "file", read_only=read_only)

    def test_a_failed_opening_leaves_the_folder_free(self, tmp_path: Path) -> None:
        open_at(tmp_path).close()
        good = file_of(tmp_path).read_bytes()
        file_of(tmp_path).write_bytes(b"x" * 10_000)
        with pytest.raises(CorruptedError):
            open_at(tmp_path)
        file_of(tmp_path).write_bytes(good)
        open_at(tmp_path).close()

    def test_a_copy_of_the_folder_is_a_memory(self, tmp_path: Path) -> None:
        with open_at(tmp_path / "one") as backend:
            ids = backend.store("a", make_chunks(3))
        (tmp_path / "two").mkdir()
        file = file_of(tmp_path / "one")
        (tmp_path / "two" / file.name).write_bytes(file.read_bytes())
        with open_at(tmp_path / "two") as backend:
            assert_same_chunks(backend.fetch("a", ids), make_chunks(3))

    def test_compaction_leaves_one_file(self, tmp_path: Path) -> None:
        with open_at(tmp_path) as backend:
            for _ in range(3):
                backend.compact()
        assert file_of(tmp_path).name == "memory-000004.lmdb"
        assert sorted(os.listdir(tmp_path)) == ["memory-000004.lmdb", "memory-000004.lmdb-lock", "writer.lock"]

    def test_it_is_checked_and_compacted_without_what_windows_lacks(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("pread", "pwrite"):
            monkeypatch.delattr(os, name, raising=False)
        with open_at(tmp_path) as backend:
            ids = backend.store("a", make_chunks(50, width=50))
            backend.evict("a", ids[3:])
            backend.compact()
        with open_at(tmp_path) as backend:
            assert backend.verify() == []
            assert_same_chunks(backend.fetch("a", ids[:3]), select(make_chunks(50, width=50), slice(3)))

    def test_what_a_compaction_cut_short_has_left_is_removed(self, tmp_path: Path) -> None:
        with open_at(tmp_path) as backend:
            ids = backend.store("a", make_chunks(3))
        (tmp_path / "compacting.tmp").write_bytes(b"half")
        (tmp_path / "memory-000002.lmdb").write_bytes(file_of(tmp_path).read_bytes())
        with open_at(tmp_path) as backend:
            assert_same_chunks(backend.fetch("a", ids), make_chunks(3))
        assert file_of(tmp_path).name == "memory-000002.lmdb"
        assert not (tmp_path / "compacting.tmp").exists()


class TestSeveralInstances:
    def test_readers_beside_the_writer_see_flushes(self, tmp_path: Path) -> None:
        with open_at(tmp_path) as writer, open_at(tmp_path, read_only=True) as reader:
            ids = writer.store("a", make_chunks(3))
            assert reader.namespaces() == []
            writer.flush()
            assert_same_chunks(reader.fetch("a", ids), make_chunks(3))
            writer.evict("a", ids[:2])
            writer.compact()
            assert reader.ids("a").tolist() == [2]
            assert reader.namespaces() == ["a"]

    def test_a_second_writer_is_told_where_and_what_to_do(self, tmp_path: Path) -> None:
        with open_at(tmp_path) as first:
            with pytest.raises(BackendError, match=f"{tmp_path}.*read_only=True"):
                open_at(tmp_path)
            first.store("a", make_chunks(1))
        with open_at(tmp_path) as second:
            assert second.count("a") == 1

    def test_a_second_writer_may_wait(self, tmp_path: Path) -> None:
        first = open_at(tmp_path)
        closing = threading.Timer(0.2, first.close)
        closing.start()
        with open_at(tmp_path, lock_timeout=30):
            closing.join()

    def test_a_reader_stays_when_a_writer_comes_and_goes(self, tmp_path: Path) -> None:
        open_at(tmp_path).close()
        with open_at(tmp_path, read_only=True) as reader:
            with open_at(tmp_path) as writer:
                writer.store("a", make_chunks(2))
            assert reader.count("a") == 2
            with open_at(tmp_path) as writer:
                writer.drop("a")
            assert reader.count("a") == 0

    def test_an_instance_that_is_forgotten_unlocks_the_folder(self, tmp_path: Path) -> None:
        backend = open_at(tmp_path)
        backend.store("a", make_chunks(1))
        backend.flush()
        backend.store("a", make_chunks(1))
        del backend
        with open_at(tmp_path) as backend:
            assert backend.count("a") == 1

    def test_another_program_that_writes_is_noticed(self, tmp_path: Path) -> None:
        backend = open_at(tmp_path)
        backend.store("a", make_chunks(1))
        backend._environment.write(lambda txn: txn.put(b"memcore more", b""), 0)
        backend._environment._last_txn -= 1
        with pytest.raises(BackendError, match="another program"):
            backend.flush()
        backend._environment._last_txn += 1
        backend.close()
