"""Many readers and one writer, in processes and threads, and several models in one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from tiny_models import random_tokens, tiny_model

import memcore
from memcore import MemoryConfig, Session
from memcore.errors import BackendError
from memcore.testing import assert_same_chunks, make_chunks, random_queries

pytest.importorskip("lmdb")

from lmdb_memories import open_at
from memcore_lmdb.backend import LmdbBackend

CONFIG = MemoryConfig(window=32, sinks=2, chunk_size=4, top_k=3, query_tokens=4, question_tokens=4)
TEXT = random_tokens(1, 120, seed=1)


def churn(backend: LmdbBackend, times: int) -> int:
    """Store and evict the same amount again and again, and return the bytes of the file."""
    chunks = make_chunks(20, width=64, key_size=64, value_size=64)
    for _ in range(times):
        backend.store("a", chunks)
        backend.flush()
        backend.evict("a", backend.ids("a"))
        backend.flush()
    return backend.disk_bytes()


def start(code: str, path: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_a_reader_that_stays_open_keeps_no_space(tmp_path: Path) -> None:
    """It holds on to a commit only while one of its calls lasts."""
    with open_at(tmp_path) as backend:
        backend.store("kept", make_chunks(3))
        alone = churn(backend, 4)
        with open_at(tmp_path, read_only=True) as reader:
            assert_same_chunks(reader.fetch("kept", torch.arange(3)), make_chunks(3))
            assert churn(backend, 12) <= 1.2 * alone
            assert_same_chunks(reader.fetch("kept", torch.arange(3)), make_chunks(3))


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
def test_a_reader_that_was_killed_in_a_call_keeps_no_space(tmp_path: Path) -> None:
    code = """
        import sys
        import lmdb
        env = lmdb.open(sys.argv[1], subdir=False, readonly=True)
        with env.begin() as txn:
            print("reading", flush=True)
            sys.stdin.read()
        """
    with open_at(tmp_path) as backend:
        backend.store("kept", make_chunks(3))
        alone = churn(backend, 4)
        with start(code, next(tmp_path.glob("*.lmdb"))) as reader:
            assert reader.stdout
            assert reader.stdout.readline() == "reading\n"
            held = churn(backend, 4)  # while a call of a reader lasts, what it reads cannot be used again
            reader.send_signal(signal.SIGKILL)
        assert held > alone
        assert churn(backend, 12) <= 1.2 * held


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
def test_readers_in_processes_never_see_half_of_a_commit(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        import torch
        from memcore_lmdb.backend import LmdbBackend
        from memcore_lmdb.options import LmdbOptions

        torch.set_num_threads(1)
        with LmdbBackend(LmdbOptions(path=Path(sys.argv[1]), read_only=True)) as backend:
            print("open", flush=True)
            reads = 0
            while backend.read_record("stop") is None or not reads:
                one, two = backend.count("one"), backend.count("two")
                assert two >= one, (one, two)  # commits may come between the two calls
                if one:
                    backend.fetch("one", backend.ids("one")[-1:])
                reads += 1
            print(reads)
        """
    with open_at(tmp_path) as backend:
        backend.flush()
        readers = [start(code, tmp_path) for _ in range(2)]
        for reader in readers:
            assert reader.stdout
            assert reader.stdout.readline() == "open\n"
        for seed in range(60):
            backend.store("one", make_chunks(1, seed=seed))
            backend.store("two", make_chunks(1, seed=seed))
            backend.flush()
        backend.write_record("stop", b"")
        backend.flush()
        for reader in readers:
            out, _ = reader.communicate(timeout=120)
            assert reader.returncode == 0
            assert int(out) > 0


def test_threads_ask_while_another_stores(tmp_path: Path) -> None:
    with open_at(tmp_path) as backend, open_at(tmp_path, read_only=True) as reader, ThreadPoolExecutor(2) as pool:
        first = backend.store("a", make_chunks(20))
        backend.flush()
        stop = threading.Event()

        def ask(asked: LmdbBackend) -> int:
            answers = 0
            while not stop.is_set() or not answers:
                found = asked.retrieve("a", random_queries(2), 5)
                assert int(found.ids.min()) >= 0
                assert_same_chunks(asked.fetch("a", first), make_chunks(20))
                answers += 1
            return answers

        asking = [pool.submit(ask, each) for each in (backend, reader)]
        for seed in range(1, 30):
            ids = backend.store("a", make_chunks(5, seed=seed))
            backend.evict("a", ids[:2])
            backend.flush()
        stop.set()
        assert all(each.result() for each in asking)
        assert backend.verify() == []


def wrapped(path: Path, **options: Any) -> Any:
    return memcore.wrap(
        tiny_model("llama"), attrs.evolve(CONFIG, backend="lmdb", backend_options={"path": str(path), **options})
    )


def test_models_in_one_process_have_memories_of_their_own_or_share_one(tmp_path: Path) -> None:
    one, two = wrapped(tmp_path / "one"), wrapped(tmp_path / "two")
    sessions = [Session(one, "book"), Session(two, "book")]
    for session in sessions:
        session.ingest(TEXT)
    with pytest.raises(BackendError, match="open for writing already"):
        wrapped(tmp_path / "one")
    reader = wrapped(tmp_path / "one", read_only=True)
    question = random_tokens(1, 4, seed=2)
    want = sessions[0].ask(question, max_new_tokens=8).token_ids
    assert torch.equal(sessions[1].ask(question, max_new_tokens=8).token_ids, want)
    assert torch.equal(Session(reader, "book").ask(question, max_new_tokens=8).token_ids, want)
    two.memory.sessions.drop("book")
    assert torch.equal(sessions[0].ask(question, max_new_tokens=8).token_ids, want)
    for model in (reader, one, two):
        memcore.unwrap(model)
