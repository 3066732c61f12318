"""Sessions and memories on disk, from the command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_runner import run

from memcore.plugins import registry

pytest.importorskip("lmdb", reason="lmdb is not installed")

CONFIG = ("--window", "64", "--set", "chunk_size=8")


@pytest.fixture
def memory(tiny_folder: str, tmp_path: Path) -> str:
    """A memory with a session ``book`` that has read 300 tokens."""
    (tmp_path / "book.txt").write_text("w7 w3 w9 " * 100)
    path = str(tmp_path / "memory")
    result = ingest(tiny_folder, path, tmp_path / "book.txt")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == "session 'book' has read 300 tokens, 300 of them now"
    return path


def ingest(folder: str, path: str, *files: Path, session: str = "book") -> Any:
    named = [part for file in files for part in ("--file", str(file))]
    return run("ingest", folder, "--session", session, "--path", path, *named, *CONFIG)


def ask(folder: str, path: str, *more: str) -> Any:
    common = ("--path", path, "--question", "w4 w5", "--max-new-tokens", "3")
    return run("ask", folder, "--session", "book", *common, *(more or CONFIG))


def test_a_session_is_asked_later_and_often(tiny_folder: str, memory: str) -> None:
    first = ask(tiny_folder, memory)
    assert first.exit_code == 0, first.output
    assert len(first.stdout.split()) == 3
    assert ask(tiny_folder, memory).stdout == first.stdout


def test_more_texts_follow(tiny_folder: str, memory: str, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("w2 " * 50)
    result = ingest(tiny_folder, memory, tmp_path / "more.txt", tmp_path / "more.txt")
    assert result.stdout.strip() == "session 'book' has read 400 tokens, 100 of them now"


def test_a_text_that_cannot_be_read_stops_all_of_them(tiny_folder: str, memory: str, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe")
    for bad, says in (("nowhere.txt", "cannot read"), ("empty.txt", "has no text"), ("binary.txt", "UTF-8")):
        result = ingest(tiny_folder, memory, tmp_path / "book.txt", tmp_path / bad)
        assert result.exit_code == 1
        assert bad in result.stderr
        assert says in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    (found,) = json.loads(run("memory", "list", memory, "--json").stdout)["sessions"]
    assert found["tokens"] == 300


@pytest.mark.slow
def test_ctrl_c_is_answered_in_one_line_and_the_same_command_goes_on(tiny_folder: str, tmp_path: Path) -> None:
    files = [tmp_path / "one.txt", tmp_path / "two.txt"]
    files[0].write_text("w7 w3 w9 " * 3000)
    files[1].write_text("w5 w2 " * 4000)
    path = str(tmp_path / "memory")
    command = [sys.executable, "-c", "from memcore.cli import app; app()", "ingest", tiny_folder, "--session", "book"]
    command += ["--path", path, *CONFIG]
    command += [part for file in files for part in ("--file", str(file))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        wait_for_a_checkpoint(path, running)
        running.send_signal(signal.SIGINT)
        _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130, stderr
    assert "the same command goes on from there" in stderr
    assert len(stderr.strip().splitlines()) == 1
    (found,) = json.loads(run("memory", "list", path, "--json").stdout)["sessions"]
    assert 0 < found["tokens"] < 17000
    result = ingest(tiny_folder, path, *files)
    assert result.stdout.strip().startswith("session 'book' has read 17,000 tokens, ")


def wait_for_a_checkpoint(path: str, running: subprocess.Popen[str]) -> None:
    while running.poll() is None:
        listed = run("memory", "list", path, "--json")
        if listed.exit_code == 0 and any(each["tokens"] for each in json.loads(listed.stdout)["sessions"]):
            return
    raise AssertionError("it ended before it could be interrupted")


def test_a_session_of_another_configuration_is_refused_in_one_line(tiny_folder: str, memory: str) -> None:
    result = ask(tiny_folder, memory, "--window", "128")
    assert result.exit_code == 1
    assert "'book' was made with window = 64 (int), not 128 (int)" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_sessions_are_listed(memory: str) -> None:
    result = run("memory", "list", memory)
    assert result.exit_code == 0, result.output
    assert "book" in result.stdout
    assert "300" in result.stdout
    (found,) = json.loads(run("memory", "list", memory, "--json").stdout)["sessions"]
    assert (found["name"], found["tokens"], found["unfinished"]) == ("book", 300, None)
    assert found["chunks"] > 50
    assert found["bytes"] > 0


def test_a_session_is_inspected(memory: str) -> None:
    result = run("memory", "inspect", memory, "book")
    assert result.exit_code == 0, result.output
    assert "chunk_size=8" in result.stdout
    found = json.loads(run("memory", "inspect", memory, "book", "--json").stdout)
    assert [layer["layer"] for layer in found["layers"]] == ["0", "1"]
    assert found["layers"][0]["retrievals"] > 0
    assert found["layers"][0]["most_retrieved"][0]["start"] % 8 == 4  # the sinks are four


def test_a_memory_is_verified(memory: str) -> None:
    result = run("memory", "verify", memory)
    assert (result.exit_code, result.stdout.strip()) == (0, "everything is as it was written")
    kind = registry().load_component("backends", "lmdb")
    with kind(kind.Options(path=Path(memory), read_only=True)) as backend:
        namespace = backend.namespaces()[0]
        keys = backend.fetch(namespace, backend.ids(namespace)[:1]).keys[0].numpy().tobytes()
    file = next(file for file in Path(memory).iterdir() if keys in file.read_bytes())
    # Everywhere, for pages that are free now may hold it, too.
    file.write_bytes(file.read_bytes().replace(keys, bytes([keys[0] ^ 1]) + keys[1:]))
    result = run("memory", "verify", memory)
    assert result.exit_code == 1
    assert f"namespace {namespace!r}, chunk " in result.stdout
    (found,) = json.loads(run("memory", "verify", memory, "--json").stdout)
    assert found["namespace"] == namespace


def test_sessions_are_copied_dropped_and_their_space_given_back(memory: str) -> None:
    assert run("memory", "copy", memory, "book", "twin").exit_code == 0
    result = run("memory", "drop", memory, "book", stdin="n\n")
    assert result.exit_code == 1
    assert [each["name"] for each in json.loads(run("memory", "list", memory, "--json").stdout)["sessions"]] == [
        "book",
        "twin",
    ]
    for name in ("book", "twin"):
        assert run("memory", "drop", memory, name, "--yes").exit_code == 0
    before = json.loads(run("memory", "list", memory, "--json").stdout)
    assert before["sessions"] == []
    result = run("memory", "compact", memory)
    assert result.exit_code == 0, result.output
    assert json.loads(run("memory", "list", memory, "--json").stdout)["disk_bytes"] < before["disk_bytes"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["memory", "list", "{}/nowhere"], "there is no memory at"),
        (["memory", "inspect", "{}", "bok"], "no session 'bok', did you mean 'book'?"),
        (["memory", "drop", "{}", "--yes", "other"], "no session 'other'"),
        (["memory", "list", "{}", "--backend", "exact"], "keeps nothing on disk"),
        (["memory", "list", "{}", "--backend", "lmbd"], "did you mean 'lmdb'"),
    ],
)
def test_a_mistake_gets_one_line(memory: str, arguments: list[str], says: str) -> None:
    result = run(*(each.format(memory) for each in arguments))
    assert result.exit_code == 1
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("command", [["drop", "{}", "book", "--yes"], ["compact", "{}"], ["list", "{}"]])
def test_no_memory_is_made_in_a_folder_without_one(tmp_path: Path, command: list[str]) -> None:
    result = run("memory", *(each.format(tmp_path) for each in command))
    assert result.exit_code == 1
    assert "there is no memory in" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_memory_that_ends_with_the_command_is_refused(tiny_folder: str, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("w7 " * 100)
    result = run("ingest", tiny_folder, "--session", "book", "--file", str(tmp_path / "book.txt"))
    assert result.exit_code == 1
    assert "give --path FOLDER" in result.stderr


def test_a_session_is_not_asked_in_memory(tiny_folder: str) -> None:
    result = run("ask", tiny_folder, "--session", "book", "--question", "w4")
    assert result.exit_code == 1
    assert "give --path FOLDER" in result.stderr


def test_text_and_session_are_not_asked_at_once(tiny_folder: str, memory: str) -> None:
    result = ask(tiny_folder, memory, "--file", "-")
    assert result.exit_code == 1
    assert "either a text" in result.stderr
