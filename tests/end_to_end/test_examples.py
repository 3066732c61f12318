"""The example scripts run, at small size, and show what they are there to show."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from memcore.demo.text import first_tokens, language_reference

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """A function that runs a script as from the command line and returns what it printed."""

    def run(script: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        printed = capsys.readouterr()
        assert not end.value.code, printed.err
        return printed.out

    return run


@pytest.mark.model
def test_what_was_told_before_the_window_is_remembered_with_memory_only(gemma: Any, run: Any) -> None:
    small = ["--turns", "5", "--window", "256", "--passage-tokens", "300", "--max-new-tokens", "12"]
    printed = run("dialogue.py", *small)
    told = [int(tokens.replace(",", "")) for tokens in re.findall(r"said ([\d,]+) tokens ago", printed)]
    assert len(told) == 4
    assert min(told) > 256
    assert re.search(r"  with memory right  My cat is called Moth", printed), printed
    assert "  without     0 of 2\n" in printed


REFERENCE = """\
The text begins with the assert statement, which raises AssertionError when its expression is false and is left out when
optimization is requested.
"""


@pytest.mark.model
def test_memory_makes_a_true_summary_likelier(gemma: Any, run: Any, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(first_tokens(language_reference(), 1500, gemma[1]), encoding="utf-8")
    (tmp_path / "reference.txt").write_text(REFERENCE, encoding="utf-8")
    files = ["--file", str(tmp_path / "text.txt"), "--reference", str(tmp_path / "reference.txt")]
    small = ["--window", "256", "--chunk-size", "32", "--max-new-tokens", "12"]
    printed = run("summarise.py", *files, *small, "--theme", "the assert statement")
    with_memory, without = printed.partition("window only")[::2]
    assert re.search(r"^ +\d+\.\d% .*Assert statements are a convenient way", with_memory, re.MULTILINE), printed
    assert not re.search(r"^ +\d+\.\d% ", without, re.MULTILINE), printed
    likely = {way: float(score) for way, score in re.findall(r"^ *(\w+ \w+) .* (-\d+\.\d+) *$", printed, re.MULTILINE)}
    assert likely["with memory"] > likely["window only"] + 0.1, printed


@pytest.fixture(scope="module")
def dialogue() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / "dialogue.py"))


def test_the_dialogue_tells_every_fact_before_it_asks_for_it(dialogue: dict[str, Any]) -> None:
    lines = dialogue["script"]((EXAMPLES / "dialogue.txt").read_text(encoding="utf-8"))
    assert sum(line.what != "read" for line in lines) > 25
    for index, line in enumerate(lines):
        if line.what == "ask":
            told = [where for where in range(index) if line.expected in lines[where].text]
            assert told, line
            assert sum(each.what == "read" for each in lines[told[-1] : index]) >= 2, line
            assert line.expected not in line.text


@pytest.mark.parametrize("written", ["tell something", "say", "read this", "ask What is it?", "ask | it"])
def test_a_line_that_is_no_part_of_a_script_is_named(dialogue: dict[str, Any], written: str) -> None:
    with pytest.raises(Exception, match="line 2 of the script must be"):
        dialogue["script"](f"read\n{written}\n")


def test_the_readme_lists_every_example() -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    there = {path.name for path in EXAMPLES.iterdir() if path.suffix == ".py" or (path / "pyproject.toml").exists()}
    assert {f"[{name}]" in readme for name in there} == {True}
    assert {"dialogue.py", "memcore-sqlite"} < there
