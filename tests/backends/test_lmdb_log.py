"""What the ``lmdb`` backend logs of what others do to its file."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from subprocess import PIPE
from typing import TYPE_CHECKING, Any

import pytest

from memcore.testing import make_chunks

pytest.importorskip("lmdb")

from lmdb_memories import file_of, open_at

if TYPE_CHECKING:
    from pathlib import Path

READ = """
import sys, lmdb
reading = lmdb.open(sys.argv[1], subdir=False, readonly=True).begin()
print("reading", flush=True)
input()
"""
"""A process that reads, and never ends to."""


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> Any:
    """A function that returns the records of an event, as far as they came from ``info`` up."""
    caplog.set_level(logging.INFO, logger="memcore.lmdb")
    return lambda event: [record for record in caplog.records if record.__dict__["event"] == event]


def test_that_the_map_grows(tmp_path: Path, heard: Any) -> None:
    with open_at(tmp_path, map_size=1 << 20) as backend:
        backend.store("a", make_chunks(20_000))
        backend.flush()
        sizes = [(record.map_bytes_before, record.map_bytes) for record in heard("lmdb.grown")]
        assert sizes[0][0] == 1 << 20
        assert all(before < after for before, after in sizes)
        assert sizes[-1][1] == backend.storage().map_bytes


def test_that_another_file_is_read_once_another_process_has_compacted(tmp_path: Path, heard: Any) -> None:
    with open_at(tmp_path) as backend:
        backend.store("a", make_chunks(5))
    old = file_of(tmp_path)
    with open_at(tmp_path, read_only=True) as reader:
        shutil.copy(old, new := old.with_name("memory-000002.lmdb"))
        old.unlink()
        assert reader.count("a") == 5
    assert [record.path for record in heard("lmdb.followed")] == [str(new)]
    assert [(record.path, record.read_only) for record in heard("lmdb.opened")] == [
        (str(old), False),
        (str(old), True),
        (str(new), True),
    ]


def test_that_places_of_killed_readers_are_free_again(tmp_path: Path, heard: Any) -> None:
    with open_at(tmp_path) as backend:
        backend.store("a", make_chunks(5))
        backend.flush()
        file = file_of(tmp_path)
        with subprocess.Popen([sys.executable, "-c", READ, file], stdin=PIPE, stdout=PIPE, text=True) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "reading\n"
            other.kill()
        backend.store("a", make_chunks(1))
        backend.flush()
    assert [record.readers for record in heard("lmdb.readers_cleared")] == [1]
