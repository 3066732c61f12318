"""What a second process sees of a persistent backend, and what a process that is killed leaves behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from memcore.errors import BackendError, UnknownChunkError
from memcore.testing.case import PersistentCase
from memcore.testing.child import child_process
from memcore.testing.chunks import make_chunks, random_queries, select

if TYPE_CHECKING:
    from pathlib import Path

    from memcore.testing.child import ChildProcess


class ProcessTests(PersistentCase):
    """Tests with a second process, which takes a second or two to start."""

    @pytest.fixture
    def child(self) -> Any:
        """Another process, killed after the test."""
        with child_process(self) as child:
            yield child

    def test_another_process_reads_and_goes_on_writing(self, tmp_path: Path, child: ChildProcess) -> None:
        with self.open(tmp_path) as backend:
            ids = backend.store("a", make_chunks(20))
            found = backend.retrieve("a", random_queries(3), 4)
            backend.write_record("r", b"a record")
        for read_only in (True, False):
            child.ask("open", path=str(tmp_path), read_only=read_only)
            assert child.ask("ids") == {"a": ids.tolist()}
            assert child.ask("records") == {"r": "a record"}
            child.ask("check", namespace="a", ids=ids.tolist(), count=20, seed=0)
            again = child.ask("retrieve", namespace="a", count=3, top_k=4)
            if self.exact:
                assert again == found.ids.tolist()
            if read_only:
                child.ask("close")
        with pytest.raises(UnknownChunkError, match="12345"):  # errors arrive as what they are
            child.ask("check", namespace="a", ids=[12345], count=1, seed=0)
        more = child.ask("store", namespace="a", count=3, seed=1)
        child.ask("close")
        with self.reopen(tmp_path) as backend:
            assert backend.ids("a").tolist() == ids.tolist() + more
            self.assert_same(backend.fetch("a", torch.tensor(more)), make_chunks(3, seed=1))

    def test_a_reader_sees_what_the_writer_flushed(self, tmp_path: Path, child: ChildProcess) -> None:
        with self.open(tmp_path) as backend:
            ids = backend.store("a", make_chunks(3))
            backend.write_record("r", b"old")
            backend.flush()
            child.ask("open", path=str(tmp_path), read_only=True)
            backend.store("b", make_chunks(2, seed=1))
            backend.write_record("r", b"new")
            backend.evict("a", ids[:1])
            assert child.ask("ids") == {"a": ids.tolist()}
            assert child.ask("records") == {"r": "old"}
            child.ask("check", namespace="a", ids=ids.tolist(), count=3, seed=0)
            backend.flush()
            if not self.follows_writer:
                child.ask("close")
                child.ask("open", path=str(tmp_path), read_only=True)
            assert child.ask("ids") == {"a": ids[1:].tolist(), "b": backend.ids("b").tolist()}
            assert child.ask("records") == {"r": "new"}
            child.ask("check", namespace="b", ids=backend.ids("b").tolist(), count=2, seed=1)
            found = child.ask("retrieve", namespace="a", count=1, top_k=2)[0]
            assert sorted(found) == ids[1:].tolist()

    def test_a_second_writer_is_refused(self, tmp_path: Path, child: ChildProcess) -> None:
        if not self.one_writer:
            pytest.skip("several processes may write")
        with self.open(tmp_path) as backend:
            backend.store("a", make_chunks(1))
            with pytest.raises(BackendError):
                child.ask("open", path=str(tmp_path))
            backend.store("a", make_chunks(1))
            backend.flush()
            with pytest.raises(BackendError):
                child.ask("open", path=str(tmp_path))
        child.ask("open", path=str(tmp_path))
        with pytest.raises(BackendError):
            self.reopen(tmp_path)
        child.kill()
        with self.reopen(tmp_path) as backend:  # a dead writer does not lock others out
            assert backend.count("a") == 2

    def test_a_killed_writer_leaves_one_moment_not_before_its_last_flush(
        self, tmp_path: Path, child: ChildProcess
    ) -> None:
        self.open(tmp_path).close()
        child.ask("open", path=str(tmp_path))
        first = child.ask("store", namespace="a", count=4, seed=0)
        child.ask("write_record", name="r", text="flushed")
        child.ask("flush")
        moments = [({"a": first}, {"r": "flushed"})]
        more = child.ask("store", namespace="b", count=2, seed=1)
        moments.append(({"a": first, "b": more}, {"r": "flushed"}))
        child.ask("evict", namespace="a", ids=first[:2])
        moments.append(({"a": first[2:], "b": more}, {"r": "flushed"}))
        child.ask("write_record", name="r", text="not flushed")
        moments.append(({"a": first[2:], "b": more}, {"r": "not flushed"}))
        child.kill()
        with self.reopen(tmp_path) as backend:
            ids = {name: backend.ids(name).tolist() for name in backend.namespaces()}
            record = backend.read_record("r")
            assert record is not None
            assert (ids, {"r": record.decode()}) in moments
            assert backend.verify() == []
            kept = backend.ids("a")
            self.assert_same(backend.fetch("a", kept), select(make_chunks(4), slice(4 - len(kept), None)))
            assert int(backend.store("a", make_chunks(1))[0]) > first[-1]

    def test_a_writer_killed_while_it_writes_leaves_whole_steps(self, tmp_path: Path, child: ChildProcess) -> None:
        self.open(tmp_path).close()
        child.ask("open", path=str(tmp_path))
        child.tell("write_on")
        answered = max(child.answer() for _ in range(10))
        child.kill()
        with self.reopen(tmp_path) as backend:
            assert backend.verify() == []
            record = backend.read_record("step")
            assert record is not None
            step, counts = int(record), [backend.count(name) for name in ("a", "b")]
            assert step >= answered
            # A moment inside of a step is one, too: chunks may be there whose record is not.
            assert counts in ([step, step], [step + 1, step], [step + 1, step + 1])
            for name, count in zip(("a", "b"), counts, strict=True):
                for place, id in enumerate(backend.ids(name).tolist()):
                    self.assert_same(backend.fetch(name, torch.tensor([id])), make_chunks(1, seed=place + 1))
                assert count
