"""``memcore memory stats``: the numbers against the memory itself, a screen that is looked at again and again."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from cli_runner import run
from rich.console import Console
from tiny_models import random_tokens, tiny_model

import memcore
from memcore.cli import memory_stats
from memcore.cli.memory import opened

pytest.importorskip("lmdb", reason="lmdb is not installed")

SETTINGS: dict[str, Any] = {"window": 32, "sinks": 2, "chunk_size": 4, "top_k": 3, "rerank": 6, "query_tokens": 4}


def wrapped(path: str, **settings: Any) -> Any:
    options: dict[str, Any] = {"backend": "lmdb", "backend_options": {"path": path}}
    return memcore.wrap(tiny_model("llama"), **SETTINGS, **options, **settings)


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A memory with the sessions ``book``, of which chunks were evicted, and ``note``."""
    path = str(tmp_path_factory.mktemp("stats") / "memory")
    model = wrapped(path, capacity=200)
    memcore.Session(model, "book").ingest(random_tokens(1, 500, seed=1))
    memcore.Session(model, "note").ingest(random_tokens(1, 100, seed=2))
    memcore.unwrap(model)
    return path


def stats(path: str, *more: str) -> dict[str, Any]:
    result = run("memory", "stats", path, "--json", *more)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_the_whole_memory_is_told(memory: str) -> None:
    found = stats(memory)
    with opened(memory, "lmdb") as (held, _):
        assert found["bytes"] == sum(found["parts"].values()) == held.disk_bytes()
        assert found["chunks"] == sum(held.count(name) for name in held.namespaces())
    assert (found["sessions"], found["dtypes"]) == (2, {"float32": found["chunks"]})
    assert found["tokens"] == 4 * found["chunks"]
    assert found["map_bytes"] == 1 << 30
    assert found["processes"] == 0
    assert found["fragmentation"] == found["parts"]["free"] / found["bytes"]
    assert 0 <= found["idle_seconds"] <= found["begun_seconds"] < 3600


def test_uses_are_those_of_the_chunks(memory: str) -> None:
    found = stats(memory, "--session", "book")["uses"]
    times: dict[int, int] = {}
    with opened(memory, "lmdb") as (_, sessions):
        bank, info = sessions.bank, sessions.info("book")
        for layer, next_id in info.next_ids.items():
            namespace = info.namespace(layer)
            usage = bank.usage(namespace)
            starts = bank.fetch(namespace, usage.ids).starts
            assert next_id > len(usage)
            for start, retrievals in zip(starts.tolist(), usage.retrievals.tolist(), strict=True):
                times[start] = times.get(start, 0) + retrievals
    assert found["passages"] == len(times)
    assert found["passages"] + found["gone"] == next_id
    assert found["retrievals"] <= sum(times.values())  # what was used of a chunk that one layer has lost is lost
    never = sum(not count for count in times.values())
    assert found["never"] == never / len(times)
    assert found["histogram"][0] == {"from": 0, "to": 0, "passages": never}
    assert sum(bar["passages"] for bar in found["histogram"]) == len(times)
    for bar in found["histogram"]:
        assert bar["passages"] == sum(bar["from"] <= count <= bar["to"] for count in times.values())
    best = max(times.values())
    assert found["most"][0]["retrievals"] == best
    assert all(times[each["start"]] == each["retrievals"] for each in found["most"])
    assert [each["session"] for each in found["most"]] == ["book"] * 5


def test_a_session_is_told_by_itself(memory: str) -> None:
    book, note = (stats(memory, "--session", name) for name in ("book", "note"))
    whole = stats(memory)
    assert book["chunks"] + note["chunks"] == whole["chunks"]
    assert book["parts"]["keys"] + note["parts"]["keys"] == whole["parts"]["keys"]
    assert "free" not in book["parts"]
    assert "fragmentation" not in book
    assert note["uses"]["gone"] == 0


def test_what_people_read_says_the_same(memory: str) -> None:
    found, shown = stats(memory), run("memory", "stats", memory).stdout
    assert f"{found['chunks']:,} of {found['tokens']:,} tokens" in shown
    assert f"{found['uses']['passages']:,}, and {found['uses']['gone']:,} that are gone" in shown
    assert f"position {found['uses']['most'][0]['start']:,} ({found['uses']['most'][0]['retrievals']:,})" in shown
    for part in found["parts"]:
        assert part in shown
    assert "read something" in shown
    shown = run("memory", "stats", memory, "--session", "note").stdout
    assert "fragmentation" not in shown


def test_a_memory_without_sessions_has_statistics_too(tmp_path: Path) -> None:
    memcore.unwrap(wrapped(str(tmp_path)))
    found = stats(str(tmp_path))
    assert (found["sessions"], found["chunks"], found["begun_seconds"]) == (0, 0, None)
    assert found["uses"] == {"passages": 0, "gone": 0, "retrievals": 0, "never": 0.0, "histogram": [], "most": []}
    assert run("memory", "stats", str(tmp_path)).exit_code == 0


def test_other_backends_tell_what_they_know(tmp_path: Path) -> None:
    from memcore_sqlite import plugin

    from memcore.plugins import registry

    manager = registry().manager
    manager.register(plugin, "sqlite of this test")
    try:
        options: dict[str, Any] = {"backend": "sqlite", "backend_options": {"path": str(tmp_path / "memory.db")}}
        model = memcore.wrap(tiny_model("llama"), **SETTINGS, **options)
        memcore.Session(model, "book").ingest(random_tokens(1, 100, seed=1))
        memcore.unwrap(model)
        command = (str(tmp_path / "memory.db"), "--backend", "sqlite")
        found = stats(*command)
        assert (found["tokens"], found["map_bytes"], found["processes"]) == (None, None, None)
        assert found["compression"] == {"unknown": found["chunks"]}
        assert found["uses"]["passages"] > 0
        assert run("memory", "stats", *command).exit_code == 0
    finally:
        manager.unregister(plugin)


def interrupt_after(seconds: float) -> None:
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_off_a_terminal_only_what_was_seen_last_is_printed(memory: str) -> None:
    interrupt_after(0.5)
    result = run("memory", "stats", memory, "--watch", "0.1")
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stdout
    assert result.stdout.count("fragmentation") == 1


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_on_a_terminal_it_is_drawn_again_in_place(memory: str) -> None:
    screen = Console(force_terminal=True, file=io.StringIO(), width=100, height=60)
    with opened(memory, "lmdb") as (_, sessions):
        from memcore.memory_statistics import memory_statistics

        interrupt_after(0.5)
        memory_stats._watch(lambda: memory_statistics(sessions), 0.1, screen)
    drawn = screen.file.getvalue()  # type: ignore[attr-defined]
    assert drawn.count("fragmentation") >= 2
    assert re.search(r"\x1b\[\d*A", drawn)  # the cursor goes up again


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_it_follows_another_process_that_writes(tmp_path: Path) -> None:
    path = str(tmp_path / "memory")
    model = wrapped(path)
    session = memcore.Session(model, "book")
    session.ingest(random_tokens(1, 60, seed=1))
    command = [sys.executable, "-c", "from memcore.cli import app; app()", "memory", "stats", path]
    with subprocess.Popen([*command, "--watch", "0.1", "--json"], stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        first = json.loads(watching.stdout.readline())
        session.ingest(random_tokens(1, 60, seed=2))
        wanted = sum(model.memory.bank.count(session.info.namespace(layer)) for layer in (0, 1))
        later = next(found for found in map(json.loads, watching.stdout) if found["chunks"] == wanted)
        watching.send_signal(signal.SIGINT)
        assert watching.wait(60) == 0
    assert later["chunks"] > first["chunks"]
    assert (first["uses"]["gone"], later["uses"]["gone"]) == (0, 0)
    assert later["processes"] == 1  # the one that writes
    memcore.unwrap(model)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--session", "bok"), "no session 'bok', did you mean 'book'?"),
        (("--backend", "exact"), "keeps nothing on disk"),
    ],
)
def test_a_mistake_gets_one_line(memory: str, more: tuple[str, ...], says: str) -> None:
    result = run("memory", "stats", memory, *more)
    assert result.exit_code == 1
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
