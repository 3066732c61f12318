"""What is particular to the ``lmdb`` backend in one process: blocks, growth, damage, files, limits."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import torch

from memcore.errors import BackendError, ConfigError, CorruptedError
from memcore.exact_backend import ExactBackend, ExactOptions
from memcore.options import structure_options
from memcore.testing import assert_same_chunks, make_chunks, random_queries, select

pytest.importorskip("lmdb")

import lmdb
from memcore_lmdb import block_writing, copying
from memcore_lmdb.backend import LmdbBackend
from memcore_lmdb.format import BLOCK, PAYLOAD, VECTORS
from memcore_lmdb.options import LmdbOptions
from memcore_lmdb.plugin import memcore_backends

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def open_at(path: Path, **options: Any) -> LmdbBackend:
    return LmdbBackend(LmdbOptions(path=path, **{"sync": False, **options}))


def file_of(path: Path) -> Path:
    (file,) = path.glob("memory-*.lmdb")
    return file


def keys_of(path: Path, kind: bytes) -> list[bytes]:
    """Return the keys of this kind in a memory that is closed."""
    with lmdb.open(str(file_of(path)), subdir=False) as env, env.begin() as txn:
        return [key for key, _ in txn.cursor() if key[:1] == kind]


def change(path: Path, key: bytes, edit: Callable[[bytearray], object]) -> None:
    """Change a value in a memory that is closed."""
    with lmdb.open(str(file_of(path)), subdir=False) as env, env.begin(write=True) as txn:
        value = bytearray(txn.get(key) or b"")
        edit(value)
        txn.put(key, bytes(value))


def flip(value: bytearray) -> None:
    value[len(value) // 2] ^= 1


def blocks(backend: LmdbBackend, namespace: str = "a") -> list[int]:
    """Return how many chunks each block of a namespace has."""
    found = backend._find(namespace)
    assert found is not None
    return [len(block) for block in found.blocks]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_writing, "BLOCK_BYTES", 64 * 2 * 5 * 4)  # 64 chunks


class TestBlocks:
    @pytest.mark.usefixtures("small_blocks")
    @pytest.mark.parametrize("step", [1, 3, 100])
    def test_small_flushes_end_in_few_blocks(self, tmp_path: Path, step: int) -> None:
        with open_at(tmp_path) as backend:
            for seed in range(300 // step):
                backend.store("a", make_chunks(step, seed=seed))
                backend.flush()
            sizes = blocks(backend)
            assert sum(sizes) == 300
            assert max(sizes) <= 64
            assert len(sizes) <= 2 * 300 / 64 + 7
        assert len(keys_of(tmp_path, VECTORS)) == len(keys_of(tmp_path, BLOCK)) == len(sizes)

    @pytest.mark.usefixtures("small_blocks")
    def test_a_chunk_is_written_again_a_bounded_number_of_times(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written = []
        write = block_writing._write

        def counting(txn: Any, number: int, rows: block_writing.NewRows, *, checked: bool) -> Any:
            written.append(len(rows))
            return write(txn, number, rows, checked=checked)

        monkeypatch.setattr(block_writing, "_write", counting)
        with open_at(tmp_path) as backend:
            for seed in range(256):
                backend.store("a", make_chunks(1, seed=seed))
                backend.flush()
        assert sum(written) <= 256 * 7  # the logarithm of 64, and once

    @pytest.mark.usefixtures("small_blocks")
    def test_blocks_that_are_mostly_evicted_are_written_anew(self, tmp_path: Path) -> None:
        with open_at(tmp_path) as backend:
            ids = backend.store("a", make_chunks(192))
            backend.flush()
            backend.evict("a", ids[[place for place in range(192) if place % 4]])
            backend.flush()
            found = backend._find("a")
            assert found is not None
            assert [block.rows for block in found.blocks] == [48]
            backend.evict("a", ids[0::8])
            backend.evict("a", ids[4:32:8])
            backend.flush()
            assert_same_chunks(backend.fetch("a", backend.ids("a")), select(make_chunks(192), backend.ids("a")))
            assert backend.verify() == []

    @pytest.mark.usefixtures("small_blocks")
    def test_search_over_many_blocks_and_what_is_staged_is_exact(self, tmp_path: Path) -> None:
        exact = ExactBackend(ExactOptions())
        with open_at(tmp_path) as backend:
            for seed in range(12):
                chunks = make_chunks(30, seed=seed)
                for each in (exact, backend):
                    ids = each.store("a", chunks)
                    each.evict("a", ids[seed::4])
                if seed % 4 == 1:
                    backend.flush()
            for top_k in (1, 7, 300):
                want, got = (each.retrieve("a", random_queries(5), top_k) for each in (exact, backend))
                assert torch.equal(got.ids, want.ids)
                torch.testing.assert_close(got.scores, want.scores)

    def test_an_emptied_namespace_leaves_nothing_but_itself(self, tmp_path: Path) -> None:
        with open_at(tmp_path) as backend:
            ids = backend.store("a", make_chunks(5))
            backend.flush()
            backend.evict("a", ids)
            backend.flush()
            assert backend.namespaces() == ["a"]
        assert keys_of(tmp_path, BLOCK) == keys_of(tmp_path, VECTORS) == keys_of(tmp_path, PAYLOAD) == []

    def test_what_is_dropped_or_replaced_leaves_nothing(self, tmp_path: Path) -> None:
        with open_at(tmp_path) as backend:
            for name in ("a", "b", "c"):
                backend.store(name, make_chunks(5))
            backend.flush()
            backend.copy("a", "b")
            backend.drop("c")
            backend.drop("a")
            backend.store("a", make_chunks(1))
        assert len(keys_of(tmp_path, PAYLOAD)) == 6


class TestDamage:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        with open_at(tmp_path / "memory") as backend:
            backend.store("a", make_chunks(4))
            backend.store("b", make_chunks(2, seed=1))
        return tmp_path / "memory"

    @pytest.mark.parametrize("verify", ["first", "always"])
    def test_a_damaged_payload_is_named_and_the_others_are_read(self, path: Path, verify: str) -> None:
        change(path, keys_of(path, PAYLOAD)[2], flip)
        with open_at(path, verify=verify) as backend:
            for _ in range(2):
                with pytest.raises(CorruptedError, match=r"'a', chunk 2: .*checksum"):
                    backend.fetch("a", torch.arange(4))
                others = torch.tensor([0, 1, 3])
                assert_same_chunks(backend.fetch("a", others), select(make_chunks(4), others))
            assert [(each.namespace, each.id) for each in backend.verify()] == [("a", 2)]

    def test_unchecked_reading_gives_what_is_there(self, path: Path) -> None:
        change(path, keys_of(path, PAYLOAD)[2], lambda value: value.__setitem__(-1, value[-1] ^ 1))
        with open_at(path, verify="never") as backend:
            got, want = backend.fetch("a", torch.tensor([2])), select(make_chunks(4), [2])
            assert torch.equal(got.keys, want.keys[:, :, : got.keys.shape[2]])
            assert not torch.equal(got.values, want.values[:, :, : got.keys.shape[2]])
            assert len(backend.verify()) == 1

    @pytest.mark.parametrize(("verify", "notices"), [("first", False), ("always", True)])
    def test_only_the_first_read_is_checked_unless_asked(self, path: Path, verify: str, notices: bool) -> None:
        key = keys_of(path, PAYLOAD)[2]

        def edit(txn: Any) -> None:
            value = bytearray(txn.get(key))
            flip(value)
            txn.put(key, bytes(value))

        with open_at(path, verify=verify) as backend:
            backend.fetch("a", torch.arange(4))
            backend._environment.write(edit, 0)
            with pytest.raises(CorruptedError) if notices else contextlib.nullcontext():
                backend.fetch("a", torch.arange(4))

    def test_damaged_embeddings_are_named_and_not_searched(self, path: Path) -> None:
        change(path, keys_of(path, VECTORS)[0], lambda value: value.__setitem__(3 * 40, value[3 * 40] ^ 1))
        with open_at(path) as backend:
            with pytest.raises(CorruptedError, match="'a', chunk 3"):
                backend.retrieve("a", random_queries(1), 1)
            with pytest.raises(CorruptedError, match="'a', chunk 3"):
                backend.fetch("a", torch.tensor([3]))
            backend.fetch("a", torch.arange(3))
            backend.retrieve("b", random_queries(1), 1)
            assert [(each.namespace, each.id) for each in backend.verify()] == [("a", 3)]
            # Written anew with others, it is still what it was: damaged.
            backend.store("a", make_chunks(3, seed=5))
            backend.flush()
            assert [(each.namespace, each.id) for each in backend.verify()] == [("a", 3)]
            backend.evict("a", torch.tensor([3]))
            assert backend.retrieve("a", random_queries(1), 9).ids.max() == 6

    def test_a_payload_cut_short_or_missing_is_named(self, path: Path) -> None:
        keys = keys_of(path, PAYLOAD)
        change(path, keys[1], lambda value: value.__delitem__(slice(-4, None)))
        with lmdb.open(str(file_of(path)), subdir=False) as env, env.begin(write=True) as txn:
            txn.delete(keys[0])
        with open_at(path, verify="never") as backend:
            with pytest.raises(CorruptedError, match=r"chunk 0.*missing"):
                backend.fetch("a", torch.arange(4))
            with pytest.raises(CorruptedError, match=r"chunk 1.*bytes"):
                backend.fetch("a", torch.arange(1, 4))
            assert sorted((each.namespace, each.id) for each in backend.verify()) == [("a", 0), ("a", 1)]

    @pytest.mark.parametrize("kind", [b"n", b"b"])
    def test_damaged_descriptions_are_reported_and_keep_to_themselves(self, path: Path, kind: bytes) -> None:
        change(path, keys_of(path, kind)[0], flip)
        with open_at(path) as backend:
            readable = []
            for name, seed, count in (("a", 0, 4), ("b", 1, 2)):
                try:
                    assert_same_chunks(backend.fetch(name, torch.arange(count)), make_chunks(count, seed=seed))
                    readable.append(name)
                except CorruptedError as error:
                    assert name in str(error)  # noqa: PT017
            assert len(readable) == 1
            assert backend.verify()

    @pytest.fixture
    def damaged_record(self, path: Path) -> Path:
        """A memory with two records, of which ``r`` is damaged."""
        with open_at(path) as backend:
            backend.write_record("r", b"a value that is long enough")
            backend.write_record("s", b"another")
        with open_at(path) as backend, backend._environment.read() as txn:
            key = next(bytes(key) for key, value in txn.cursor() if b"long enough" in bytes(value))
        change(path, key, lambda value: value.__setitem__(-1, value[-1] ^ 1))
        return path

    def test_damaged_records_are_named(self, damaged_record: Path) -> None:
        with open_at(damaged_record) as backend:
            with pytest.raises(CorruptedError, match="'r'"):
                backend.read_record("r")
            assert backend.read_record("s") == b"another"
            assert [each for each in backend.verify() if "'r'" in str(each)]

    def test_a_damaged_record_can_be_dropped(self, damaged_record: Path) -> None:
        with open_at(damaged_record) as backend:
            backend.drop_record("r")
            backend.drop_record("r")
            assert backend.read_record("r") is None
        with open_at(damaged_record) as backend:
            assert backend.record_names() == ["s"]
            assert backend.verify() == []


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


class TestOptions:
    def test_they_are_structured_from_plain_values(self, tmp_path: Path) -> None:
        options = structure_options(LmdbOptions, {"path": str(tmp_path), "lock_timeout": 1, "verify": "never"})
        assert options.path == tmp_path
        assert options.lock_timeout == 1.0

    @pytest.mark.parametrize(
        "values",
        [
            {},
            {"path": 3},
            {"path": "a", "map_size": 5},
            {"path": "a", "verify": "sometimes"},
            {"path": "a", "compression": "zip"},
            {"path": "a", "lock_timeout": -1},
            {"path": "a", "write_buffer": -1},
            {"path": "a", "hold_vectors": -1},
        ],
        ids=lambda values: " ".join(map(str, values)),
    )
    def test_bad_ones_are_refused(self, values: dict[str, object]) -> None:
        with pytest.raises(ConfigError, match=list(values)[-1] if values else "path"):
            structure_options(LmdbOptions, values)

    def test_compression_is_for_new_namespaces(self, tmp_path: Path) -> None:
        with open_at(tmp_path) as backend:
            ids = backend.store("a", make_chunks(3))
        with open_at(tmp_path, compression="int8") as backend:
            more = backend.store("a", make_chunks(3, seed=1))
            assert_same_chunks(backend.fetch("a", torch.cat((ids, more))[:3]), make_chunks(3))
            small = backend.store("b", make_chunks(3))
            backend.copy("b", "c")
        with open_at(tmp_path) as backend:
            assert_same_chunks(backend.fetch("a", more), make_chunks(3, seed=1))
            got = backend.fetch("c", small)
            assert not torch.equal(got.keys, make_chunks(3).keys)
            torch.testing.assert_close(got.starts, make_chunks(3).starts)

    def test_the_plugin_loads_the_backend(self) -> None:
        (component,) = memcore_backends()
        assert component.load() is LmdbBackend


def test_a_float8_payload_is_kept_bit_for_bit(tmp_path: Path) -> None:
    chunks = make_chunks(3)
    small = attrs.evolve(chunks, keys=chunks.keys.to(torch.float8_e4m3fn), values=chunks.values.to(torch.float8_e4m3fn))
    with open_at(tmp_path) as backend:
        ids = backend.store("a", attrs.evolve(small, lengths=torch.full((3,), 3)))
        backend.flush()
        assert torch.equal(backend.fetch("a", ids).keys.view(torch.uint8), small.keys.view(torch.uint8))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_ids_may_be_on_a_gpu(tmp_path: Path) -> None:
    chunks = make_chunks(4)
    with open_at(tmp_path) as backend:
        first = backend.store("a", select(chunks, slice(2)))
        backend.flush()
        ids = torch.cat((backend.store("a", select(chunks, slice(2, None))), first)).cuda()
        assert_same_chunks(backend.fetch("a", ids), select(chunks, [2, 3, 0, 1]))
        backend.evict("a", ids[:3])
        assert backend.ids("a").tolist() == [1]


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
