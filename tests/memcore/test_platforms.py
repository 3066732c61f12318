"""What differs between Linux, Windows and macOS, as far as it can be tried on one of them."""

from __future__ import annotations

import ast
import ntpath
import re
import subprocess
import sys
import textwrap
from pathlib import Path, PureWindowsPath
from typing import Any

import pytest
import torch
from tiny_models import random_tokens, tiny_model
from typer.testing import CliRunner

import memcore
from memcore.cli import app
from memcore.files import names_file, read_text, replacing, sync
from memcore.model_source import check_source

ROOT = Path(__file__).parents[2]
NAMES = (
    "a:b",
    "CON",
    "nul.txt",
    "ends in a dot.",
    "ends in a space ",
    "..",
    "../up",
    "a/b",
    "a\\b",
    "C:\\x",
    '*?<>|"',
    "é",
)
"""What Windows takes for no name of a file, for a device, or for a place elsewhere."""


ONLY_UNIX = """
    chown chroot confstr copy_file_range fchdir fchmod fchown fdatasync fork forkpty fpathconf fstatvfs getegid geteuid
    getgid getgroups getloadavg getpgid getpgrp getpriority getresgid getresuid getsid getuid getxattr initgroups killpg
    lchown listxattr lockf major makedev memfd_create minor mkfifo mknod nice openpty pathconf pidfd_open pipe2
    posix_fadvise posix_fallocate posix_spawn posix_spawnp pread preadv pwrite pwritev readv register_at_fork
    removexattr sched_getaffinity sched_setaffinity sched_yield sendfile setegid seteuid setgid setgroups setpgid
    setpriority setresgid setresuid setsid setuid setxattr splice statvfs sync sysconf ttyname uname wait wait3 wait4
    waitid writev O_CLOEXEC O_DIRECT O_DIRECTORY O_DSYNC O_NOFOLLOW O_NONBLOCK O_SYNC WNOHANG
"""
"""What the module ``os`` has everywhere but on Windows."""


def sources() -> list[Path]:
    rooms = ("memcore", "backends", "adapters", "examples")
    return [file for room in rooms for file in (ROOT / room).rglob("*.py")]


@pytest.mark.parametrize("backend", ["lmdb", "hnswlib"])
def test_no_name_that_users_choose_becomes_the_name_of_a_file(tmp_path: Path, backend: str) -> None:
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    path = tmp_path / "outer" / "memory"
    options: dict[str, Any] = {"path": str(path)}
    model: Any = memcore.wrap(tiny_model("llama"), window=32, chunk_size=8, backend=backend, backend_options=options)
    for number, name in enumerate(NAMES):
        memcore.Session(model, name).ingest(random_tokens(1, 80, seed=number))
    assert set(model.memory.sessions.names()) == set(NAMES)
    memcore.unwrap(model)
    assert [each.name for each in tmp_path.iterdir()] == ["outer"]
    assert [each.name for each in (tmp_path / "outer").iterdir()] == ["memory"]
    for file in path.rglob("*"):
        assert re.fullmatch(r"[a-z0-9]([a-z0-9_.-]*[a-z0-9])?", file.name), file
        assert not ntpath.isreserved(file.name) if hasattr(ntpath, "isreserved") else True


def test_a_folder_of_windows_is_taken_for_a_folder_and_not_for_a_hub_id() -> None:
    for name in (r"models\tiny", r"C:\models\tiny", r".\tiny", r"\\server\share\tiny"):
        with pytest.raises(memcore.UnsupportedModelError, match="there is no folder"):
            check_source(name)
    check_source("owner/name")
    check_source("gpt2")


def test_texts_of_windows_are_read(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("\ufeffGrüße\r\naus Zürich\r\n".encode())
    assert read_text(tmp_path / "text") == "Grüße\naus Zürich\n"


def test_what_cannot_be_the_name_of_a_file_is_a_text() -> None:
    assert not names_file("nul\0")
    assert not names_file("x" * 5000)
    assert not names_file("a\nb")
    assert names_file(__file__)


def test_every_file_is_opened_with_an_encoding() -> None:
    """Windows has one of its own otherwise. Ruff finds the calls that miss it, in what is shipped."""
    rooms = ["memcore", "backends", "adapters", "examples"]
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--preview", "--select", "PLW1514", *rooms]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if "No module named ruff" in done.stderr:
        pytest.skip("ruff is not installed")
    assert done.returncode == 0, done.stdout


def test_no_module_imports_what_only_one_system_has() -> None:
    only_some = ("fcntl", "resource", "pwd", "grp", "termios", "pty", "msvcrt", "winreg", "winsound")
    pattern = re.compile(rf"^(import|from) ({'|'.join(only_some)})\b", re.MULTILINE)  # in a function it may be guarded
    found = {str(file): pattern.search(file.read_text(encoding="utf-8")) for file in sources()}
    assert not {file for file, match in found.items() if match}


def test_what_os_has_on_unix_only_is_asked_for_before_it_is_used() -> None:
    found, only_unix = set(), set(ONLY_UNIX.split())
    for file in sources():
        text = file.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
                used = {node.attr}
            elif isinstance(node, ast.ImportFrom) and node.module == "os":
                used = {name.name for name in node.names}
            else:
                continue
            found |= {(str(file), name) for name in used & only_unix if f'hasattr(os, "{name}")' not in text}
    assert not found


def test_only_signals_that_every_system_has_are_named() -> None:
    everywhere = {"SIGINT", "SIGTERM", "SIGABRT", "SIGFPE", "SIGILL", "SIGSEGV"}
    named = {
        name for file in sources() for name in re.findall(r"\bsignal\.(SIG[A-Z]+)\b", file.read_text(encoding="utf-8"))
    }
    assert named <= everywhere | {"SIG_DFL", "SIG_IGN"}
    assert "SIGINT" in named


def test_a_signal_waits_without_those_that_windows_lacks() -> None:
    """In a process of its own, as pytest needs some of what is missing."""
    code = """
        import signal
        for name in ("SIGHUP", "SIGUSR1", "SIGALRM", "pthread_sigmask", "pthread_kill", "setitimer"):
            delattr(signal, name)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from memcore.uninterrupted import uninterrupted
        try:
            with uninterrupted:
                signal.raise_signal(signal.SIGINT)
                print("done")
        except KeyboardInterrupt:
            print("interrupted")
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["done", "interrupted"]


def test_a_file_is_replaced_where_a_folder_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows: what syncs the folder gets PermissionError."""
    import os

    real = os.open

    def refuse_folders(path: Any, *arguments: Any) -> int:
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", refuse_folders)
    (tmp_path / "file").write_text("old", encoding="utf-8")
    with replacing(tmp_path / "file") as new:
        new.write_text("new", encoding="utf-8")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "new"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    sync(tmp_path)


def test_memory_is_had_where_none_can_be_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    import mmap

    from memcore.reserved import reserve, takes_memory_late

    monkeypatch.delattr(mmap, "MAP_ANONYMOUS", raising=False)
    assert not takes_memory_late(torch.device("cpu"))
    made = reserve((2048, 1024), torch.float32, torch.device("cpu"))
    made[-1] = 3
    assert made[-1].sum() == 3 * 1024


def test_an_encoding_without_a_character_shows_another(tmp_path: Path) -> None:
    """What Windows writes to a pipe is in an encoding of its own, which lacks most of what a model can say."""
    pytest.importorskip("lmdb", reason="lmdb is not installed")
    path = str(tmp_path / "memory")
    model: Any = memcore.wrap(
        tiny_model("llama"), window=32, chunk_size=8, backend="lmdb", backend_options={"path": path}
    )
    memcore.Session(model, "Grüße ✓").ingest(random_tokens(1, 9, seed=0))
    memcore.unwrap(model)
    listed = CliRunner(charset="ascii").invoke(app, ["memory", "list", path], env={"COLUMNS": "120"})
    assert listed.exit_code == 0, listed.exception
    assert "Gr??e ?" in listed.stdout


def test_paths_of_windows_in_a_configuration_stay_as_they_are() -> None:
    path = str(PureWindowsPath("C:/Users/anna/memory"))
    config = memcore.MemoryConfig(backend="lmdb", backend_options={"path": path})
    assert memcore.MemoryConfig.from_dict(config.to_dict()).backend_options["path"] == r"C:\Users\anna\memory"
