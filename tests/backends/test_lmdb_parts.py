"""What the bytes of an LMDB file are said to be, against the chunks, the file and LMDB's own numbers."""

from __future__ import annotations

import subprocess
import sys
import threading
from subprocess import PIPE
from typing import TYPE_CHECKING

import pytest
import torch
from memcore_sqlite.backend import SqliteBackend, SqliteOptions

from memcore.testing import make_chunks

pytest.importorskip("lmdb")

from lmdb_memories import file_of, open_at

if TYPE_CHECKING:
    from pathlib import Path


OPEN = """
import sys, lmdb
env = lmdb.open(sys.argv[1], subdir=False, readonly=True)
print("open", flush=True)
input()
"""
"""A process that opens it and stays."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parts_of_a_namespace_are_the_bytes_of_its_tensors(tmp_path: Path, dtype: torch.dtype) -> None:
    chunks = make_chunks(50, dtype=dtype)
    with open_at(tmp_path) as backend:
        backend.store("a", chunks)
        backend.flush()
        found = backend.storage().namespaces["a"]
        tokens = int(chunks.lengths.sum())
        assert (found.chunks, found.tokens, found.compression) == (50, tokens, "none")
        assert found.dtype == str(dtype).removeprefix("torch.")
        assert found.parts["keys"] == tokens * chunks.keys[0, :, 0].nbytes
        assert found.parts["values"] == tokens * chunks.values[0, :, 0].nbytes
        assert found.parts["embeddings"] == chunks.embeddings.nbytes
        assert found.parts["token ids"] == 8 * tokens
        assert found.parts["embeddings of chunks that are gone"] == 0


def test_compressed_keys_and_values_are_counted_with_their_scales(tmp_path: Path) -> None:
    chunks = make_chunks(50, key_size=64, value_size=64, width=32)
    with open_at(tmp_path, compression="int8") as backend:
        backend.store("a", chunks)
        backend.flush()
        found = backend.storage().namespaces["a"]
        tokens = int(chunks.lengths.sum())
        assert found.compression == "int8"
        assert found.parts["keys"] == tokens * 2 * 64 + 50 * 2 * 64 * 4 * 2
        assert found.parts["values"] == tokens * 2 * (64 + 4 * 2)


def test_all_parts_together_are_the_file(tmp_path: Path) -> None:
    with open_at(tmp_path) as backend:
        backend.store("a", make_chunks(300))
        backend.store("b", make_chunks(20, heads=4))
        backend.write_record("uses", bytes(10_000))
        backend.flush()
        backend.evict("a", backend.ids("a")[::3])
        backend.flush()
        found = backend.storage()
        assert sum(found.all_parts.values()) == backend.disk_bytes()
        assert found.parts["sessions and uses"] > 10_000
        assert min(found.all_parts.values()) >= 0
        assert sum(each.parts["keys"] for each in found.namespaces.values()) == found.all_parts["keys"]


def test_evicted_chunks_leave_embeddings_behind_until_half_of_a_block_is_gone(tmp_path: Path) -> None:
    with open_at(tmp_path) as backend:
        chunks = make_chunks(30)
        backend.store("a", chunks)
        backend.flush()
        backend.evict("a", backend.ids("a")[:10])
        backend.flush()
        parts = backend.storage().namespaces["a"].parts
        assert parts["embeddings of chunks that are gone"] == chunks.embeddings[:10].nbytes
        assert parts["embeddings"] == chunks.embeddings[10:].nbytes


def test_what_is_free_is_what_compaction_gives_back(tmp_path: Path) -> None:
    with open_at(tmp_path) as backend:
        for name in ("a", "b"):
            backend.store(name, make_chunks(500, width=8))
        backend.flush()
        backend.drop("a")
        backend.flush()
        backend.flush()
        free, before = backend.storage().parts["free"], backend.disk_bytes()
        assert backend.storage().fragmentation == pytest.approx(free / before)
        assert free > before / 3
        backend.compact()
        page = 4096
        assert abs(before - backend.disk_bytes() - free) <= 4 * page  # the list of free pages has some, too
        assert backend.storage().parts["free"] <= page


def test_the_map_is_told_as_the_writer_has_it(tmp_path: Path) -> None:
    with open_at(tmp_path, map_size=1 << 20) as backend:
        backend.store("a", make_chunks(10))
        backend.flush()
        assert backend.storage().map_bytes == backend._environment._opened().info()["map_size"]
        backend.store("a", make_chunks(20_000))
        backend.flush()
        grown = backend.storage().map_bytes
        assert grown == backend._environment._opened().info()["map_size"]
        assert backend.disk_bytes() > 2 << 20
    with open_at(tmp_path, read_only=True) as reader:
        assert reader.storage().map_bytes == grown


def test_other_processes_that_have_it_open_are_counted(tmp_path: Path) -> None:
    with open_at(tmp_path) as backend:
        backend.store("a", make_chunks(2))
        backend.flush()
        assert backend.storage().processes == 0
        file = file_of(tmp_path)
        with subprocess.Popen([sys.executable, "-c", OPEN, file], stdin=PIPE, stdout=PIPE, text=True) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "open\n"
            assert backend.storage().processes == 1
            other.kill()
        assert backend.storage().processes == 0


def test_it_can_be_asked_while_another_thread_writes(tmp_path: Path) -> None:
    with open_at(tmp_path) as backend, open_at(tmp_path, read_only=True) as reader:
        stop = threading.Event()

        def write() -> None:
            while not stop.is_set():
                backend.store("a", make_chunks(5))
                backend.flush()

        writer = threading.Thread(target=write)
        writer.start()
        try:
            counts: list[int] = []
            while len(counts) < 50 or counts[-1] == counts[0]:
                found = reader.storage()
                counts.append(found.namespaces["a"].chunks if found.namespaces else 0)
        finally:
            stop.set()
            writer.join()
        assert counts == sorted(counts)
        assert counts[-1] > counts[0]


def test_a_backend_that_tells_no_parts_tells_its_chunks_and_the_rest(tmp_path: Path) -> None:
    with SqliteBackend(SqliteOptions(path=tmp_path / "memory.db")) as backend:
        backend.store("a", make_chunks(50, dtype=torch.bfloat16))
        backend.flush()
        found = backend.storage()
        assert found.namespaces["a"].parts == {"chunks": backend.nbytes("a")}
        assert (found.namespaces["a"].dtype, found.namespaces["a"].tokens) == ("bfloat16", None)
        assert sum(found.all_parts.values()) == backend.disk_bytes()
        assert (found.processes, found.fragmentation) == (None, 0)
