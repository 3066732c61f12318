"""The commands on a page: those of memcore are run, the others are held against what they name."""

from __future__ import annotations

import re
import shlex
import string
import tomllib
from pathlib import Path
from typing import Any

from cli_runner import run
from page_blocks import ROOT, Block

PROGRAMS = ("make", "memcore", "pip", "pre-commit", "pytest", "python")


def commands(block: Block) -> list[list[str]]:
    """Return the words of each command in a block, without comments, variables put in."""
    found: list[list[str]] = []
    variables: dict[str, str] = {}
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(string.Template(line).safe_substitute(variables), comments=True)
        if len(words) == 1 and re.fullmatch(r"[A-Z]+=.*", words[0], flags=re.DOTALL):
            name, _, variables[name] = words[0].partition("=")
        elif words:
            found.append(words)
    return found


def check_command(words: list[str], said: str = "") -> str:
    """Run a command of memcore, or see that what another one names is there.

    Args:
        words: program and arguments.
        said: what stands on standard input.

    Returns:
        What it printed.
    """
    env = {}
    while assigned := re.fullmatch(r"([A-Z_]+)=(.*)", words[0]):
        env[assigned[1]] = assigned[2]
        words = words[1:]
    program, arguments = Path(words[0]).name, words[1:]
    if program == "memcore":
        result = run(*arguments, stdin=said, env=env)
        assert result.exit_code == 0, f"{shlex.join(words)}\n{result.output}\n{result.exception!r}"
        return str(result.stdout)
    check = {"make": _make, "pip": _pip, "pytest": _pytest, "python": _python, "pre-commit": _pre_commit}
    assert program in check, f"{program} is none of {PROGRAMS}: give the block a language"
    check[program](arguments)
    return ""


def _make(arguments: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for each in arguments:
        if "=" not in each:
            assert each in targets, f"make {each}: the targets are {targets}"


def _pip(arguments: list[str]) -> None:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert arguments[0] == "install"
    for each in arguments[1:]:
        if named := re.match(rf"{project['name']}\[(.*)\]$", each):
            for extra in named[1].split(","):
                assert extra in project["optional-dependencies"], f"pip install {each}: no extra {extra}"


def _python(arguments: list[str]) -> None:
    if arguments[:2] == ["-m", "pytest"]:
        _pytest(arguments[2:])
        return
    if arguments[0] == "-c":
        compile(arguments[1], "a command", "exec")
        return
    script = ROOT / arguments[0]
    text = script.read_text(encoding="utf-8")
    for option in arguments[1:]:
        if re.match(r"--\w", option):
            name = option.removeprefix("--").replace("-", "_")
            assert re.search(rf"\b{name}\b", text) or option in text, f"{script.name} takes no {option}"


def _pytest(arguments: list[str]) -> None:
    for each in arguments:
        if each.startswith("tests/"):
            assert Path(ROOT / each.partition("::")[0]).exists(), each


def _pre_commit(arguments: list[str]) -> None:
    assert arguments == ["install"]
