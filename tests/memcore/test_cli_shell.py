"""The command line as other programs meet it: JSON on standard output, exit codes, silence, completions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_runner import run
from typer.main import get_command

from memcore.cli import app

SMALL = ("--window", "128", "--max-new-tokens", "3")
CONFIG = ("--window", "64", "--set", "chunk_size=8")


def commands(group: Any, *names: str) -> Iterator[tuple[str, Any]]:
    """Yield every command with what is typed for it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *names, name)
        else:
            yield " ".join([*names, name]), command


COMMANDS = dict(commands(get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_asked_for_json_and_for_silence(name: str) -> None:
    options = {option for param in COMMANDS[name].params for option in param.opts}
    assert {"--json", "--quiet", "-q", "--verbose", "-v"} <= options


def test_there_are_commands_in_groups_and_outside() -> None:
    assert {"ask", "doctor", "memory list", "eval ppl"} <= COMMANDS.keys()


def json_of(*arguments: str, stdin: str | None = None) -> Any:
    """Run a command with ``--json`` and return its document, the only thing on standard output."""
    result = run(*arguments, "--json", stdin=stdin)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_ask_as_json(tiny_folder: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("w7 w3 w9 " * 100)
    asked = ("ask", tiny_folder, "--file", str(tmp_path / "text"), "--question", "w1", "--question", "w2", *SMALL)
    plain = run(*asked)
    found = json_of(*asked)
    assert [each["question"] for each in found["answers"]] == ["w1", "w2"]
    for each in found["answers"]:
        assert each["answer"] in plain.stdout
        assert each["seconds"] > 0
        assert {"start", "layers", "text"} == each["passages"][0].keys()
    explained = json_of(*asked, "--explain")
    tokens = explained["answers"][0]["tokens"]
    assert [token["text"].strip() for token in tokens] == found["answers"][0]["answer"].split()
    assert 0 < tokens[0]["memory"] < 1


def test_chat_as_json_says_every_line(tiny_folder: str) -> None:
    found = json_of("chat", tiny_folder, *SMALL, stdin="w1 w2\n\n/w3\n")
    assert [turn["said"] for turn in found["turns"]] == ["w1 w2", "/w3"]
    assert [len(turn["reply"].split()) for turn in found["turns"]] == [3, 3]
    assert found["session"] is None
    assert found["tokens"] >= 9


def test_demo_as_json(tiny_folder: str) -> None:
    found = json_of("demo", "--model", tiny_folder, "--tokens", "600", "--window", "128", "--facts", "2")
    assert [fact.keys() for fact in found["facts"]] == [{"prompt", "answer", "position"}] * 2
    assert [method["name"] for method in found["methods"]] == ["without memory", "with memory", "full attention"]
    assert [len(method["answers"]) for method in found["methods"]] == [2, 2, 2]


def test_memory_as_json(tiny_folder: str, tmp_path: Path) -> None:
    pytest.importorskip("lmdb", reason="lmdb is not installed")
    (tmp_path / "text").write_text("w7 w3 w9 " * 100)
    memory = str(tmp_path / "memory")
    into = ("--session", "book", "--path", memory, *CONFIG)
    read = json_of("ingest", tiny_folder, "--file", str(tmp_path / "text"), *into)
    assert (read["name"], read["tokens"]) == ("book", 300)
    asked = json_of("ask", tiny_folder, *into, "--question", "w1", "--max-new-tokens", "2")
    assert (asked["session"], len(asked["answers"])) == ("book", 1)
    copied = json_of("memory", "copy", memory, "book", "twin")
    assert (copied["session"], copied["copy_of"], copied["tokens"]) == ("twin", "book", 300)
    dropped = json_of("memory", "drop", memory, "twin", "--yes")
    assert (dropped["dropped"], dropped["tokens"]) == ("twin", 300)
    compacted = json_of("memory", "compact", memory)
    assert 0 < compacted["bytes_after"] <= compacted["bytes_before"]
    assert json_of("memory", "verify", memory) == []


def test_evaluations_as_json(tiny_folder: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    (tmp_path / "text").write_text("w7 w3 w9 " * 100)
    (tmp_path / "questions").write_text('{"question": "w1", "answer": "w2"}\n')
    (tmp_path / "kinds.csv").write_text("text,label\n" + "".join(f"w{n},w5\nw{n + 20},w6\n" for n in range(20)))
    small = ("--output", str(tmp_path / "out"), "--way", "window", "--way", "memory", *CONFIG)
    text = ("--file", str(tmp_path / "text"))
    ppl = json_of("eval", "ppl", tiny_folder, *text, "--context", "200", "--scored", "50", *small)
    assert set(ppl["results"]) == {"window", "memory"}
    assert ppl["results"]["memory"]["200"] > 1
    assert all(Path(file).exists() for file in ppl["files"])
    qa = json_of("eval", "qa", tiny_folder, *text, "--questions", str(tmp_path / "questions"), *small)
    assert set(qa["results"]) == {"window", "memory"}
    of_kinds = ("--data", str(tmp_path / "kinds.csv"), "--demonstrations", "4", "--shots", "1", "--items", "2")
    icl = json_of("eval", "icl", tiny_folder, *of_kinds, "--seeds", "1", *small)
    assert icl["results"]["kinds"]["memory"]["error"] is None
    assert 0 <= icl["results"]["kinds"]["memory"]["accuracy"] <= 1


def test_a_command_line_that_is_none_is_json_too() -> None:
    result = run("ask", "--json", "--windwo", "3")
    assert (result.exit_code, result.stderr) == (2, "")
    assert json.loads(result.stdout)["error"]["type"] == "UsageError"


def test_silence_behind_a_command_and_before_it(tiny_folder: str) -> None:
    asked = ("ask", tiny_folder, "--file", "-", "--question", "w1", *SMALL)
    assert "read 200 tokens" in run(*asked, stdin="w3 " * 200).stderr
    for arguments in ((*asked, "-q"), ("--quiet", *asked)):
        quiet = run(*arguments, stdin="w3 " * 200)
        assert (quiet.exit_code, quiet.stderr) == (0, "")
        assert len(quiet.stdout.split()) == 3
    assert "read 200 tokens" in run(*asked, stdin="w3 " * 200).stderr  # it ends with its command


def complete(line: str, shell: str = "bash") -> list[str]:
    """Return what a shell is given for a line, and see that nothing heavy is imported for it."""
    words = line.split(" ")
    code = (
        "import sys, atexit\n"
        "heavy = {'torch', 'transformers', 'numpy'}\n"
        "atexit.register(lambda: print('heavy', heavy & set(sys.modules), file=sys.stderr))\n"
        "from memcore.cli import app\napp(prog_name='memcore')\n"
    )
    asked = {"_MEMCORE_COMPLETE": f"complete_{shell}"}
    if shell == "bash":
        asked |= {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    else:
        asked |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **asked})
    assert done.stderr == "heavy set()\n", done.stderr
    return done.stdout.splitlines()


def test_the_shell_completes_commands_options_and_names_of_components() -> None:
    assert {"ask", "memory"} <= set(complete("memcore "))
    assert complete("memcore ask model --backend ex") == ["exact"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_given_a_line_on_each_word(shell: str) -> None:
    told = "\n".join(complete("memcore ask model --backend ", shell))
    assert "exact" in told
    assert "lmdb" not in complete("memcore ask model --backend ex", shell)
    assert "bfloat16" in "\n".join(complete("memcore ask model --dtype bf", shell))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_what_completes_can_be_shown_for_each_shell(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    shown = run("--show-completion", shell)
    assert shown.exit_code == 0, shown.output
    assert "_COMPLETE" in shown.stdout
