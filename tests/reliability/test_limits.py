"""Full disks, media that cannot be written to, and limits of the system: a clear error, and nothing lost."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("lmdb")

from memcore_lmdb.backend import LmdbBackend
from memcore_lmdb.options import LmdbOptions

from memcore.errors import BackendError
from memcore.testing import assert_same_chunks, make_chunks

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")

START = """
import errno, json, os, resource, sys
from pathlib import Path
import torch
from memcore.errors import BackendError, WriteError
from memcore.files import replacing
from memcore.testing import assert_same_chunks, make_chunks
from memcore_lmdb.backend import LmdbBackend
from memcore_lmdb.options import LmdbOptions

path = Path(sys.argv[1])
small, large = make_chunks(3), make_chunks(40, width=64, key_size=64, value_size=64)

def open_at(**options):
    return LmdbBackend(LmdbOptions(path=path / "memory", map_size=1 << 16, **options))

def refused(call):
    try:
        call()
    except (BackendError, WriteError) as error:
        print(error, flush=True)
        return True
    return False
"""


def run(code: str, path: Path, *, before: tuple[str, ...] = ()) -> str:
    """Run a program in another process, perhaps started by another, and return what it prints."""
    program = [sys.executable, "-c", START + textwrap.dedent(code), str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*before, *program], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@functools.cache
def namespaces() -> tuple[str, ...]:
    """Return what runs a program where it may mount things that nobody else sees."""
    before = ("unshare", "--mount", "--map-root-user", "--")
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare to mount a small disk with")
    done = subprocess.run([*before, "mount", "-t", "tmpfs", "tmpfs", "/tmp"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting a small disk is not allowed here: {done.stderr.decode().strip()}")
    return before


def mounted(mount: str, path: Path) -> tuple[str, ...]:
    """Return what runs a program after a command in a mount namespace of its own; ``$0`` is the path."""
    return (*namespaces(), "sh", "-c", f'{mount} && exec "$@"', str(path))


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    code = """
        backend = open_at()
        ids = backend.store("a", small)
        backend.flush()
        backend.store("b", large)  # 1.3 MB twice, and 2 MB of disk
        for number in range(3):
            backend.store(f"c {number}", large)
        assert refused(backend.flush)
        assert refused(backend.flush)
        assert_same_chunks(backend.fetch("a", ids), small)
        assert_same_chunks(backend.fetch("b", torch.arange(40)), large)
        assert refused(backend.compact)
        with open_at(read_only=True) as reader:
            assert reader.namespaces() == ["a"]
            assert reader.verify() == []
        for number in range(3):
            backend.drop(f"c {number}")
        backend.drop("b")
        backend.store("b", small)
        backend.flush()
        backend.close()
        with open_at() as backend:
            assert backend.verify() == []
            assert_same_chunks(backend.fetch("a", ids), small)
            assert_same_chunks(backend.fetch("b", ids), small)
        """
    out = run(code, tmp_path, before=mounted('mount -t tmpfs -o size=3m tmpfs "$0"', tmp_path))
    assert "bytes are free on the disk" in out


def test_files_on_a_full_disk_are_as_they_were(tmp_path: Path) -> None:
    code = """
        from safetensors.torch import save_file

        target = path / "config.json"
        with replacing(target) as new:
            new.write_text("old")

        def text():
            with replacing(target) as new:
                new.write_text("x" * 3_000_000)

        def tensors():
            with replacing(target) as new:
                save_file({"a": torch.zeros(1_000_000)}, new)

        for write in (text, tensors):
            assert refused(write)
            assert target.read_text() == "old"
            assert os.listdir(path) == ["config.json"]
        """
    out = run(code, tmp_path, before=mounted('mount -t tmpfs -o size=1m tmpfs "$0"', tmp_path))
    assert out.count("what was there is as it was") == 2


def test_an_hnswlib_memory_on_a_full_disk_is_as_it_was(tmp_path: Path) -> None:
    pytest.importorskip("hnswlib", reason="hnswlib is not installed")
    code = """
        from memcore_hnswlib.backend import HnswlibBackend
        from memcore_hnswlib.options import HnswlibOptions

        def open_graph():
            return HnswlibBackend(HnswlibOptions(path=path / "graph", exact_below=0))

        with open_graph() as backend:
            ids = backend.store("a", small)
        backend = open_graph()
        backend.store("b", large)
        backend.retrieve("b", torch.zeros(1, 5), 2)
        for _ in range(2):
            assert refused(backend.save)
            assert len(os.listdir(path / "graph")) == 2
        backend.drop("b")
        backend.store("c", small)
        backend.close()
        with open_graph() as backend:
            assert backend.namespaces() == ["a", "c"]
            assert_same_chunks(backend.fetch("a", ids), small)
        """
    run(code, tmp_path, before=mounted('mount -t tmpfs -o size=1m tmpfs "$0"', tmp_path))


def test_a_read_only_disk_is_read_and_not_written(tmp_path: Path) -> None:
    with LmdbBackend(LmdbOptions(path=tmp_path / "memory")) as backend:
        backend.store("a", make_chunks(3))
    before = sorted(os.listdir(tmp_path / "memory"))
    code = """
        with open_at(read_only=True) as backend:
            assert_same_chunks(backend.fetch("a", torch.arange(3)), small)
            assert backend.verify() == []
        assert refused(open_at)
        assert LmdbBackend.salvage(LmdbOptions(path=path / "memory")) == []

        def write():
            with replacing(path / "file") as new:
                new.write_text("")

        assert refused(write)
        """
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0"'
    out = run(code, tmp_path, before=mounted(mount, tmp_path))
    assert "read_only=True" in out
    assert sorted(os.listdir(tmp_path / "memory")) == before


def test_without_file_handles_nothing_is_lost(tmp_path: Path) -> None:
    code = """
        backend = open_at()
        ids = backend.store("a", small)
        backend.flush()
        used = [os.open(os.devnull, os.O_RDONLY)]
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (used[0] + 1, most))
        assert refused(lambda: LmdbBackend(LmdbOptions(path=path / "other")))
        assert refused(lambda: LmdbBackend(LmdbOptions(path=path / "memory", read_only=True, verify="never")).verify())
        assert refused(backend.compact)
        backend.store("a", small)
        backend.flush()  # which needs none
        assert_same_chunks(backend.fetch("a", ids), small)
        os.close(used[0])
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        backend.compact()
        backend.store("a", small)
        backend.close()
        with open_at() as backend:
            assert backend.count("a") == 9
            assert backend.verify() == []
        """
    assert "Too many open files" in run(code, tmp_path)


def test_too_many_readers_are_told_so(tmp_path: Path) -> None:
    with LmdbBackend(LmdbOptions(path=tmp_path)) as backend:
        backend.store("a", make_chunks(3))
    (tmp_path / "memory-000001.lmdb-lock").unlink()
    code = """
        import lmdb

        # Another program is the first to open it, and says how many may read.
        other = lmdb.open(str(path / "memory-000001.lmdb"), subdir=False, max_readers=1)
        with other.begin():
            print("reading", flush=True)
            input()
        """
    command = [sys.executable, "-c", START + textwrap.dedent(code), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout
        assert other.stdin
        assert other.stdout.readline() == "reading\n"
        with pytest.raises(BackendError, match="read by as many instances"):
            LmdbBackend(LmdbOptions(path=tmp_path, read_only=True))
        other.stdin.write("\n")
    with LmdbBackend(LmdbOptions(path=tmp_path, read_only=True)) as backend:
        assert_same_chunks(backend.fetch("a", backend.ids("a")), make_chunks(3))


def test_hundreds_of_readers_fit(tmp_path: Path) -> None:
    with LmdbBackend(LmdbOptions(path=tmp_path)) as backend:
        backend.store("a", make_chunks(1))
        file = str(next(tmp_path.glob("*.lmdb")))
        code = f"""
            import lmdb

            env = lmdb.open({file!r}, subdir=False, readonly=True)
            held = [env.begin() for _ in range(300)]
            print(len(held))
            """
        assert run(code, tmp_path) == "300\n"


def test_a_compaction_that_cannot_be_made_durable_goes_on_in_the_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is committed after it must not go to the old file, which the next to open it would not look at."""

    def fail(_: Path) -> None:
        raise OSError("input/output error")

    with LmdbBackend(LmdbOptions(path=tmp_path)) as backend:
        backend.store("a", make_chunks(3))
        with monkeypatch.context() as patch:
            patch.setattr("memcore_lmdb.environment.sync", fail)
            with pytest.raises(BackendError, match="input/output"):
                backend.compact()
        backend.store("a", make_chunks(3))
        backend.flush()
        with LmdbBackend(LmdbOptions(path=tmp_path, read_only=True)) as reader:
            assert reader.count("a") == 6
    with LmdbBackend(LmdbOptions(path=tmp_path)) as backend:
        assert backend.count("a") == 6
