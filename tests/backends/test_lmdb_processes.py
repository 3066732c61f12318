"""What is particular to the ``lmdb`` backend with several processes, forks, crashes and full disks."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch

from memcore.errors import BackendError
from memcore.testing import assert_same_chunks, make_chunks
from memcore.testing.case import PersistentCase
from memcore.testing.child import child_process

pytest.importorskip("lmdb")

from lmdb_memories import open_at
from memcore_lmdb import copying
from memcore_lmdb.backend import LmdbBackend
from memcore_lmdb.environment import Environment
from memcore_lmdb.registry import _ForkGuard, environments

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from memcore.testing.child import ChildProcess

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


def run(code: str, *arguments: object) -> str:
    """Run a program in another process and return what it prints; ``open_at`` and ``make_chunks`` are there."""
    start = """
        import os, sys
        from pathlib import Path
        import torch
        from memcore.errors import BackendError
        from memcore.testing import assert_same_chunks, make_chunks
        from memcore_lmdb.backend import LmdbBackend
        from memcore_lmdb.options import LmdbOptions

        path = Path(sys.argv[1])

        def open_at(**options):
            return LmdbBackend(LmdbOptions(path=path, **options))
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(start) + textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_fork(work: Callable[[], None]) -> None:
    """Do something in a forked child, and fail if it fails."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


class Case(PersistentCase):
    def open(self, path: Path) -> LmdbBackend:
        return open_at(path, map_size=1 << 16)

    def reopen(self, path: Path, read_only: bool = False) -> LmdbBackend:
        return open_at(path, map_size=1 << 16, read_only=read_only)


class TestReaders:
    @pytest.fixture
    def child(self) -> Any:
        with child_process(Case()) as child:
            yield child

    def test_a_reader_follows_growth_and_compaction(self, tmp_path: Path, child: ChildProcess) -> None:
        large = make_chunks(40, width=64, key_size=64, value_size=64, seed=1)
        with Case().open(tmp_path) as writer:
            ids = writer.store("a", make_chunks(3))
            writer.flush()
            child.ask("open", path=str(tmp_path), read_only=True)
            for step in range(3):
                more = writer.store(f"large {step}", large)  # far more than the reader has mapped
                writer.flush()
                assert child.ask("ids")[f"large {step}"] == more.tolist()
                child.ask("check", namespace="a", ids=ids.tolist(), count=3, seed=0)
                writer.evict("large 0", writer.ids("large 0"))
                writer.compact()
                writer.store("a", make_chunks(1, seed=7))
                writer.flush()
                assert child.ask("ids")["a"] == writer.ids("a").tolist()
                child.ask("check", namespace="a", ids=ids.tolist(), count=3, seed=0)
            assert child.ask("verify") == []


@posix
class TestForks:
    def test_a_handle_of_the_parent_is_refused_and_its_own_works(self, tmp_path: Path) -> None:
        with open_at(tmp_path) as backend:
            ids = backend.store("a", make_chunks(3))
            backend.flush()
            backend.store("a", make_chunks(1))

            def child() -> None:
                for call in (lambda: backend.fetch("a", ids), lambda: backend.count("a"), backend.flush):
                    with pytest.raises(BackendError, match="open the memory again"):
                        call()
                with pytest.raises(BackendError, match="open for writing already"):
                    open_at(tmp_path)
                with open_at(tmp_path, read_only=True) as own:
                    assert_same_chunks(own.fetch("a", ids), make_chunks(3))
                backend.close()

            in_fork(child)
            with pytest.raises(BackendError, match="open for writing already"):
                open_at(tmp_path)
            assert_same_chunks(backend.fetch("a", ids), make_chunks(3))
            backend.flush()
            assert run("print(open_at(read_only=True).count('a'))", tmp_path) == "4\n"

    def test_forks_while_others_read_harm_nobody(self, tmp_path: Path) -> None:
        with open_at(tmp_path) as backend, open_at(tmp_path, read_only=True) as reader, ThreadPoolExecutor(1) as pool:
            ids = backend.store("a", make_chunks(3))
            backend.flush()
            stop = threading.Event()

            def read() -> int:
                reads = 0
                while not stop.is_set() or not reads:
                    assert_same_chunks(reader.fetch("a", ids), make_chunks(3))
                    reads += 1
                return reads

            def child() -> None:
                with open_at(tmp_path, read_only=True) as own:
                    assert own.count("a") == 3

            reading = pool.submit(read)
            for _ in range(5):
                in_fork(child)
                backend.write_record("r", b"")
                backend.flush()
            stop.set()
            assert reading.result() > 0


class _Watched:
    """The lock of an environment, which tells when a thread comes to wait for it."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self.asked = threading.Event()

    def acquire(self) -> bool:
        self.asked.set()
        acquired: bool = self._lock.acquire()
        return acquired

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def test_a_fork_waits_for_what_is_opened_while_two_threads_are_about_to_fork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = _ForkGuard()  # of its own: nothing forks here
    first, second = Environment(tmp_path / "a"), Environment(tmp_path / "b")
    watched: Any = _Watched(first.lock)
    first.lock = watched
    monkeypatch.setitem(environments, "a", first)
    held = []

    def fork() -> None:
        guard.before()
        try:
            held.append(second.lock._is_owned())  # type: ignore[attr-defined]
        finally:
            guard.in_parent()

    with ThreadPoolExecutor(2) as pool:
        with watched:
            watched.asked.clear()
            forks = [pool.submit(fork)]
            assert watched.asked.wait(60)  # for the first, and it knows of no other
            monkeypatch.setitem(environments, "b", second)
            watched.asked.clear()
            forks.append(pool.submit(fork))
            assert watched.asked.wait(60)
        for each in forks:
            each.result(60)
    assert held == [True, True]


class TestCrashes:
    @posix
    def test_a_killed_writer_leaves_its_last_flush(self, tmp_path: Path) -> None:
        code = """
            import signal
            backend = open_at()
            ids = backend.store("a", make_chunks(4))
            backend.write_record("r", b"flushed")
            backend.flush()
            backend.evict("a", ids[:2])
            backend.store("b", make_chunks(2))
            backend.write_record("r", b"not flushed")
            backend.drop("a")
            if os.fork() == 0:
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
            """
        with pytest.raises(AssertionError):
            run(code, tmp_path)
        with open_at(tmp_path) as backend:
            assert backend.namespaces() == ["a"]
            assert_same_chunks(backend.fetch("a", torch.arange(4)), make_chunks(4))
            assert backend.read_record("r") == b"flushed"
            assert backend.verify() == []

    def test_a_copy_that_was_cut_short_is_cleared_away(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Killed(BaseException):
            pass

        def die(*_: object, **__: object) -> None:
            raise Killed

        monkeypatch.setattr(copying, "_STEP", 500)
        backend = open_at(tmp_path)
        backend.store("a", make_chunks(20))
        backend.flush()
        entries = []
        with monkeypatch.context() as patch:
            # As if the process had ended before the last step: nothing clears up.
            patch.setattr(copying, "_delete_unfinished", die)
            patch.setattr(copying, "name_key", die)
            with pytest.raises(Killed):
                backend.copy("a", "b")
        with backend._environment.read() as txn:
            entries.append(txn.stat()["entries"])
        assert backend.namespaces() == ["a"]
        backend.close()
        with open_at(tmp_path) as backend:
            assert backend.namespaces() == ["a"]
            assert backend.verify() == []
            with backend._environment.read() as txn:
                entries.append(txn.stat()["entries"])
            backend.copy("a", "b")
            assert_same_chunks(backend.fetch("b", torch.arange(20)), make_chunks(20))
        assert entries[0] > entries[1]

    @posix
    def test_a_full_disk_loses_nothing(self, tmp_path: Path) -> None:
        code = """
            import resource

            large = make_chunks(40, width=64, key_size=64, value_size=64)
            backend = open_at()
            first = backend.store("a", make_chunks(3))
            backend.flush()
            backend.store("b", large)
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, most))
            backend._environment._make_room = lambda size: None  # so that LMDB itself fails, in the middle
            for _ in range(2):
                try:
                    backend.flush()
                    print("flushed")
                except BackendError as error:
                    print("refused")
                assert_same_chunks(backend.fetch("a", first), make_chunks(3))
                assert_same_chunks(backend.fetch("b", torch.arange(40)), large)
            del backend._environment._make_room
            try:
                backend.flush()
            except BackendError as error:
                print("refused")
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            backend.flush()
            backend.close()
            """
        assert run(code, tmp_path).split() == ["refused"] * 3
        with open_at(tmp_path) as backend:
            large = make_chunks(40, width=64, key_size=64, value_size=64)
            assert_same_chunks(backend.fetch("b", torch.arange(40)), large)
            assert_same_chunks(backend.fetch("a", torch.arange(3)), make_chunks(3))
            assert backend.verify() == []


@posix
def test_a_memory_that_must_not_be_written_to_can_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    with open_at(folder) as backend:
        backend.store("a", make_chunks(3))
    (folder / "memory-000001.lmdb-lock").unlink()
    (folder / "writer.lock").unlink(missing_ok=True)
    (folder / "memory-000001.lmdb").chmod(0o444)
    folder.chmod(0o555)
    for parent in (tmp_path, *tmp_path.parents[:3]):  # one of them is that of pytest-xdist's process
        mode = parent.stat().st_mode
        if mode & 0o055 != 0o055:
            parent.chmod(mode | 0o055)
    code = """
        if os.geteuid() == 0:  # who may write anywhere
            os.setegid(65534)
            os.seteuid(65534)
        with open_at(read_only=True) as backend:
            assert_same_chunks(backend.fetch("a", torch.arange(3)), make_chunks(3))
            assert backend.verify() == []
        try:
            open_at()
        except BackendError as error:
            print(error)
        """
    assert "read_only=True" in run(code, folder)
    assert os.listdir(folder) == ["memory-000001.lmdb"]
    folder.chmod(0o755)
