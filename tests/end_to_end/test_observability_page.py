"""docs/observability.md: its code runs, its tables are the events and arguments that there are."""

from __future__ import annotations

import inspect
import json
import logging
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import memcore_faiss.events
import memcore_lmdb.events
import pytest
import torch
from cli_runner import run
from page_blocks import Block, blocks
from tiny_models import random_tokens, tiny_model

import memcore
from memcore import events, hookspecs
from memcore.log_event import ROOT, LogEvent
from memcore.plugin_hooks import PluginHooks
from memcore.plugins import registry
from memcore.testing import make_chunks

pytest.importorskip("lmdb", reason="lmdb is not installed")

PAGE = Path(memcore.__file__).parents[1] / "docs" / "observability.md"
OBSERVING = {"memcore_opened", "memcore_stored", "memcore_retrieved", "memcore_evicted"}
TEXT = PAGE.read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table whose first cell this is, without the heading."""
    table = TEXT[TEXT.index(f"| {heading} |") :].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def code(language: str) -> list[Block]:
    return [block for block in blocks(PAGE) if block.language == language]


def test_the_events_on_the_page_are_those_that_there_are() -> None:
    there = {
        (f"`{event.name}`", logging.getLevelName(event.level).lower(), ", ".join(f"`{each}`" for each in event.fields))
        for module in (events, memcore_lmdb.events, memcore_faiss.events)
        for event in vars(module).values()
        if isinstance(event, LogEvent)
    }
    assert {tuple(row) for row in rows("event")} == there


def test_the_arguments_on_the_page_are_those_that_hooks_have() -> None:
    told = {name: set(inspect.signature(getattr(hookspecs, name)).parameters) for name in OBSERVING}
    said: dict[str, set[str]] = {name: set() for name in OBSERVING}
    for argument, of, _ in rows("argument"):
        named = OBSERVING if of == "all" else set(re.findall(r"`(\w+)`", of))
        for hook in OBSERVING - named if of.startswith("all but") else named:
            said[hook].add(argument.strip("`"))
    assert said == told


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    root, logger = logging.getLogger(), logging.getLogger(ROOT)
    before = [(each, each.level, list(each.handlers)) for each in (root, logger)]
    yield
    for each, level, handlers in before:
        each.setLevel(level)
        each.handlers[:] = handlers


@pytest.mark.usefixtures("logging_as_before")
def test_the_code_on_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    *of_the_log, of_hooks = code("python")
    for block in of_the_log:
        exec(block.text, names)
    events.SESSION_OPENED.log(session="book", tokens=0)
    line, shown = (json.loads(text) for text in (capsys.readouterr().err.splitlines()[-1], code("text")[0].text))
    assert list(line) == list(shown)
    del line["time"], shown["time"]
    assert line == shown
    try:
        exec(of_hooks.text, names)
        PluginHooks(registry()).retrieved("a", torch.arange(2), make_chunks(2), None, count=1000, seconds=0.06)
        assert capsys.readouterr().out == "a: 60 ms for 1,000 chunks\n"
    finally:
        manager = registry().manager
        for plugin in manager.get_plugins():
            if type(plugin).__name__ == "Slow":
                manager.unregister(plugin)
        registry.cache_clear()


def test_the_commands_on_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"backend": "lmdb", "backend_options": {"path": "memory"}}
    model = memcore.wrap(tiny_model("llama"), window=32, sinks=2, chunk_size=4, **options)
    memcore.Session(model, "book").ingest(random_tokens(1, 100, seed=1))
    memcore.unwrap(model)
    commands = [line for block in code("") for line in block.text.splitlines() if line.startswith("memcore")]
    shown = code("text")[1].text
    for line in commands:
        result = run(*shlex.split(line)[1:])
        assert result.exit_code == 0, result.output
        if "--json" not in line:  # the same facts and parts, by their names
            left = {line.split("  ")[0].strip("│ ") for line in result.stdout.splitlines() if re.match(r"[ │]\w", line)}
            known = {line.split("  ")[0].strip("│ ") for line in shown.splitlines() if re.match(r"[│a-z]", line)}
            assert left - {""} <= known | {"0", "1", "2–3"}, left - known
    assert len(commands) == 2


def test_the_options_on_the_page_are_those_of_the_command_line() -> None:
    named = set(re.findall(r"--(?:log-\w+|verbose|quiet)|MEMCORE_LOG_\w+", TEXT))
    shown = run("--help").stdout
    assert named == {"--log-level", "--log-json", "--verbose", "--quiet", "MEMCORE_LOG_LEVEL", "MEMCORE_LOG_JSON"}
    assert all(each in shown for each in named)
