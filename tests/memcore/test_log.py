"""What is logged: nothing unless asked, and then events whose names and fields stay the same."""

from __future__ import annotations

import ast
import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import memcore_faiss.events
import memcore_lmdb.events
import pytest
from cli_runner import run
from pythonjsonlogger.json import JsonFormatter
from tiny_models import random_tokens, tiny_model

import memcore
from memcore import events
from memcore.cli.output import notes
from memcore.log_event import ROOT, LogEvent

FOLDERS = ("memcore", "backends", "adapters")
EVENTS = {
    module.__name__.partition(".")[0] + "." + name: event
    for module in (events, memcore_faiss.events, memcore_lmdb.events)
    for name, event in vars(module).items()
    if isinstance(event, LogEvent)
}
SETTINGS: dict[str, Any] = {"window": 32, "sinks": 2, "chunk_size": 4, "top_k": 3, "query_tokens": 4}


class Collecting(logging.Handler):
    """Keeps the records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """All that is logged, debugging included."""
    handler = Collecting()
    logger = logging.getLogger(ROOT)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler.records
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return what a record has beside that which every record has."""
    plain = vars(logging.makeLogRecord({}))
    return {name: value for name, value in vars(record).items() if name not in {*plain, "message", "taskName"}}


def live(path: Path) -> None:
    """Begin a session, read, ask, copy, drop and compact."""
    options: dict[str, Any] = {"backend": "lmdb", "backend_options": {"path": str(path)}}
    model: Any = memcore.wrap(tiny_model("llama"), capacity=80, **SETTINGS, **options)
    session = memcore.Session(model, "book")
    session.ingest(random_tokens(1, 150, seed=1))
    session.ask(random_tokens(1, 6, seed=2), max_new_tokens=2)
    model.memory.sessions.copy("book", "twin")
    model.memory.sessions.drop("book")
    model.memory.bank.backend.compact()
    memcore.unwrap(model)


def test_every_call_gives_the_fields_that_its_event_has() -> None:
    seen = set()
    for folder in FOLDERS:
        root = Path(memcore.__file__).parents[1] / folder
        for file in root.rglob("*.py"):
            package = (file.relative_to(root.parent if folder == "memcore" else root)).parts[0]
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                match node:
                    case ast.Call(
                        func=ast.Attribute(value=ast.Attribute(value=ast.Name("events"), attr=name), attr="log")
                    ):
                        given = {keyword.arg for keyword in node.keywords} - {"traceback"}
                        assert given == set(EVENTS[f"{package}.{name}"].fields), f"{file}, line {node.lineno}"
                        seen.add(f"{package}.{name}")
    assert seen == set(EVENTS)


def test_events_have_names_of_their_own_and_fields_that_a_record_can_have() -> None:
    assert len({event.name for event in EVENTS.values()}) == len(EVENTS)
    reserved = {*vars(logging.makeLogRecord({})), "message", "asctime", "event", "taskName"}
    for event in EVENTS.values():
        assert not reserved & set(event.fields), event
        assert len(set(event.fields)) == len(event.fields), event


def test_what_happens_is_logged_without_texts_and_tokens(tmp_path: Path, records: list[logging.LogRecord]) -> None:
    live(tmp_path / "memory")
    found = [fields(record) for record in records]
    assert {each["event"] for each in found} == {
        *("memory.opened", "memory.closed", "bank.stored", "bank.retrieved", "bank.evicted"),
        *("session.begun", "session.opened", "session.checkpointed", "session.copied", "session.dropped"),
        *("lmdb.opened", "lmdb.committed", "lmdb.compacted"),
    }
    allowed = {event.name: set(event.fields) for event in EVENTS.values()}
    for record, each in zip(records, found, strict=True):
        name = each.pop("event")
        assert record.name == f"memcore.{name.partition('.')[0]}"
        assert set(each) == allowed[name]
        assert record.funcName != "log"  # but where it happened
        for field, value in each.items():
            # No lists but that of the layers: so no token ids.
            assert isinstance(value, str | int | float | bool | None) or field == "layers", (name, field)


def test_what_was_evicted_and_how_long_it_took_is_told(tmp_path: Path, records: list[logging.LogRecord]) -> None:
    live(tmp_path / "memory")
    evicted = next(fields(record) for record in records if fields(record)["event"] == "bank.evicted")
    assert evicted["namespace"] == "session/book/layer0"
    assert evicted["chosen_by"] == "eviction policy MemLongEviction"
    assert evicted["count"] <= 20
    assert evicted["seconds"] > 0
    compacted = next(fields(record) for record in records if fields(record)["event"] == "lmdb.compacted")
    assert compacted["bytes"] < compacted["bytes_before"]


def test_a_reading_that_fails_is_rolled_back_and_told(records: list[logging.LogRecord]) -> None:
    def fail(done: int, total: int) -> None:
        raise RuntimeError("stop")

    session = memcore.Session(memcore.wrap(tiny_model("llama"), **SETTINGS), "book")
    with pytest.raises(RuntimeError, match="stop"):
        session.ingest(random_tokens(1, 150, seed=1), progress=fail)
    assert fields(records[-1]) == {"event": "session.rolled_back", "session": "book", "tokens": 0}


def test_what_a_crash_has_left_is_put_right_and_told(tmp_path: Path, records: list[logging.LogRecord]) -> None:
    options: dict[str, Any] = {"backend": "lmdb", "backend_options": {"path": str(tmp_path / "memory")}}
    model: Any = memcore.wrap(tiny_model("llama"), **SETTINGS, **options)
    backend = model.memory.bank.backend
    session = memcore.Session(model, "book")
    before = backend.read_record("session/book")
    session.ingest(random_tokens(1, 100, seed=1))
    backend.write_record("session/book", before)  # as if the crash had come between the two records of a session
    backend.write_record("session-copy/twin", b"")  # as if it had come in the middle of a copy
    memcore.unwrap(model)
    memcore.wrap(model, **SETTINGS, **options)
    assert memcore.Session(model, "book").tokens == 100
    memcore.unwrap(model)
    warnings = [fields(record) for record in records if record.levelno == logging.WARNING]
    assert warnings == [
        {"event": "session.copy_undone", "session": "twin"},
        {"event": "session.repaired", "session": "book"},
    ]


def test_python_json_logger_writes_all_fields(tmp_path: Path, records: list[logging.LogRecord]) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter("%(levelname)s %(name)s %(message)s", timestamp="time"))
    logger = logging.getLogger(ROOT)
    logger.addHandler(handler)
    try:
        live(tmp_path / "memory")
        try:
            raise ValueError("why")
        except ValueError:
            events.PLUGIN_FAILED.log(plugin="a", hook="memcore_stored", traceback=True)
    finally:
        logger.removeHandler(handler)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(lines) == len(records)
    for line, record in zip(lines, records, strict=True):
        assert line["message"] == record.getMessage()
        assert {name: line[name] for name in fields(record)} == fields(record)
    assert "ValueError: why" in lines[-1]["exc_info"]


def test_the_library_is_silent_by_default() -> None:
    code = "import memcore\nfrom memcore import events\nevents.PLUGIN_PROBLEM.log(plugin='a', problem='b')"
    for before, says in (
        ("", ""),
        ("import logging; logging.basicConfig()\n", "WARNING:memcore.plugin:plugin 'a': b\n"),
    ):
        done = subprocess.run([sys.executable, "-c", before + code], capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ("", says)


@pytest.fixture
def book(tmp_path: Path) -> str:
    """A memory with a session."""
    path = tmp_path / "memory"
    live(path)
    return str(path)


def test_the_command_line_shows_what_is_asked_for(book: str) -> None:
    copied = run("--log-level", "debug", "memory", "copy", book, "twin", "third")
    assert "debug" in copied.stderr
    command = ("memory", "drop", book, "twin", "--yes")
    result = run("--verbose", *command)
    assert result.exit_code == 0, result.output
    lines = result.stderr.splitlines()
    assert any("info" in line and line.endswith("session 'twin' was dropped") for line in lines)
    assert not any("debug" in line for line in lines)
    assert run("--verbose", "memory", "list", book, "--json").stdout == run("memory", "list", book, "--json").stdout
    assert run("memory", "list", book).stderr == ""
    assert not logging.getLogger(ROOT).isEnabledFor(logging.INFO)  # it is as it was


def test_the_command_line_shows_the_log_as_json(book: str) -> None:
    result = run("--log-json", "memory", "drop", book, "twin", "--yes", env={"MEMCORE_LOG_LEVEL": "info"})
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    dropped = next(line for line in lines if line["event"] == "session.dropped")
    assert (dropped["level"], dropped["logger"], dropped["session"]) == ("INFO", "memcore.session", "twin")
    assert dropped["time"].endswith("+00:00")


def test_a_warning_is_shown_unless_quiet(plugin_folder: Any) -> None:
    from memcore import plugins

    plugin_folder("odd", "raise RuntimeError('odd')\n")
    plugins.registry.cache_clear()
    try:
        assert run("plugins").stderr.startswith("warning: plugin 'odd': ")
        plugins.registry.cache_clear()
        assert run("--quiet", "plugins").stderr == ""
    finally:
        plugins.registry.cache_clear()


def test_verbose_and_quiet_contradict_each_other() -> None:
    for words in (
        ("-v", "-q", "plugins"),
        ("plugins", "-q", "-v"),
        ("-q", "plugins", "-v"),
        ("memory", "list", "x", "-v", "-q"),
    ):
        result = run(*words)
        assert result.exit_code == 2
        assert "contradict each other" in result.stderr
        assert not notes.quiet
    assert run("-q", "plugins", "-q").exit_code == 0
    assert not notes.quiet
