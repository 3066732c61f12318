"""The example scripts run, at small size, and show what they are there to show."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from memcore.demo.text import first_tokens, language_reference
from memcore.plugins import registry

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


DOCUMENT = """\
Minutes of the harbour board. The board met on Tuesday in the old customs house.

The lighthouse keeper of Port Selwyn is called Agnes Barrowclough. She asked for a new lamp.
"""


@pytest.mark.model
def test_a_question_is_answered_from_a_passage_that_memory_brings_back(gemma: Any, run: Any, tmp_path: Path) -> None:
    rest = first_tokens(language_reference(), 1000, gemma[1])
    (tmp_path / "text.txt").write_text(f"{DOCUMENT}\n{rest}", encoding="utf-8")
    (tmp_path / "questions.txt").write_text(
        "# one\nThe lighthouse keeper of Port Selwyn is called | Agnes Barrowclough\n", encoding="utf-8"
    )
    files = ["--file", str(tmp_path / "text.txt"), "--questions", str(tmp_path / "questions.txt")]
    printed = run("question_answering.py", *files, "--window", "256", "--max-new-tokens", "6")
    assert re.search(r"with memory  right Agnes Barrowclough", printed), printed
    assert re.search(r"^ +\d+\.\d% .*Port Selwyn", printed, re.MULTILINE), printed
    assert "  window only  wrong" in printed
    assert re.search(r"with memory  1\n  window only  0\n", printed), printed


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.usefixtures("gemma")
def test_the_source_of_a_package_says_what_its_functions_do(run: Any) -> None:
    printed = run("ask_a_package.py", "pluggy", "--characters", "24000", "--questions", "4")
    known = {
        way: int(count) for way, count in re.findall(r"^  (with memory|window only) *(\d)$", printed, re.MULTILINE)
    }
    assert known["with memory"] >= 3, printed
    assert known["with memory"] > known["window only"], printed


def test_a_function_that_is_not_there_can_be_asked_for(run: Any, tiny_folder: str) -> None:
    small = ["--model", tiny_folder, "--characters", "9000", "--questions", "2", "--window", "128"]
    printed = run("ask_a_package.py", "pluggy", *small, "--ask", "def no_such_function():")
    assert printed.count("  docstring ") == 3
    assert re.search(r"def no_such_function\(\):\n  docstring +not known\n", printed), printed
    assert "of 2 functions:" in printed


def test_the_answers_to_the_questions_stand_in_the_pages() -> None:
    names = runpy.run_path(str(EXAMPLES / "question_answering.py"))
    pages = " ".join(" ".join(page.read_text(encoding="utf-8") for page in names["PAGES"]).split())
    asked = names["read_questions"](names["QUESTIONS"].read_text(encoding="utf-8"))
    assert len(asked) == 5
    for question, expected in asked:
        place = pages.index(question) + len(question)
        assert expected in pages[place : place + 30], question


@pytest.mark.parametrize("written", ["only a question", "a | b | c", "| answer"])
def test_a_line_that_is_no_question_is_named(written: str) -> None:
    names = runpy.run_path(str(EXAMPLES / "question_answering.py"))
    with pytest.raises(Exception, match=re.escape(written)):
        names["read_questions"](written)


def test_an_indented_comment_is_no_question() -> None:
    names = runpy.run_path(str(EXAMPLES / "question_answering.py"))
    assert names["read_questions"]("# one\n  # two\n\n  A cat is called | Moth\n") == [("A cat is called", "Moth")]


def test_what_is_no_package_is_named() -> None:
    names = runpy.run_path(str(EXAMPLES / "ask_a_package.py"))
    for package in ("no_such_package", "no_such.package", "sys"):
        with pytest.raises(Exception, match=f"no package '{package}' with Python source"):
            names["source_files"](package)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """A function that runs the cells of a notebook and returns its names and what it printed."""

    def run(name: str, **environment: str) -> tuple[dict[str, Any], str]:
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)
        names = runpy.run_path(str(EXAMPLES / "notebooks" / f"{name}.py"))
        return names, capsys.readouterr().out

    registry.cache_clear()  # what a notebook registers is gone after it
    yield run
    registry.cache_clear()


@pytest.mark.parametrize("name", ["own_embedder", "evaluation"])
def test_a_notebook_runs_with_a_model_of_ones_own(notebook: Any, tiny_folder: str, name: str) -> None:
    names, printed = notebook(name, MODEL=tiny_folder, TOKENS="1200", SEEDS="1")
    assert set(names["found"]) in ({"shared-words", "subblock", "random"}, {"window", "random", "memory"})
    assert printed


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.usefixtures("gemma")
def test_an_embedder_of_ones_own_finds_what_chance_does_not(notebook: Any) -> None:
    found = notebook("own_embedder", TOKENS="1500")[0]["found"]
    assert found["shared-words"] >= 3
    assert found["shared-words"] > found["random"]


@pytest.mark.model
@pytest.mark.usefixtures("gemma")
def test_a_policy_and_a_hook_of_ones_own_decide_what_is_forgotten(notebook: Any) -> None:
    results = notebook("own_eviction", TOKENS="1500")[0]["results"]
    assert list(results.values()) == [False, True, False]


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.usefixtures("gemma")
def test_an_evaluation_tells_memory_from_chance(notebook: Any) -> None:
    found = notebook("evaluation", TOKENS="3000", SEEDS="1")[0]["found"]
    shares = {way: sum(share[3000] for share in by_depth.values()) / 2 for way, by_depth in found.items()}
    assert shares["memory"] > shares["random"]
    assert shares["memory"] > shares["window"]


def test_fine_tuning_saves_what_it_trained_and_puts_it_back(notebook: Any, tiny_folder: str) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    pytest.importorskip("peft", reason="peft is not installed")
    layers = {"MEMORY_LAYER": "0", "READING_LAYERS": "1"}
    names, printed = notebook("finetuning", MODEL=tiny_folder, TOKENS="1600", STEPS="2", **layers)
    assert names["stage"].steps == 2
    assert names["trained"].memory.config.memory_layer == 0
    assert "MiB of trained weights" in printed


def test_notebooks_are_cells_of_text_and_code() -> None:
    for file in (EXAMPLES / "notebooks").glob("*.py"):
        cells = re.split(r"^# %%", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert cells[0] == ""
        assert cells[1].startswith(" [markdown]\n# # ")
        assert {cell.startswith(" [markdown]\n") for cell in cells[1:]} == {True, False}


def test_the_readme_lists_every_example() -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    files = [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("notebooks/*.py")]
    there = {file.name for file in files} | {folder.parent.name for folder in EXAMPLES.glob("*/pyproject.toml")}
    assert {f"[{name}]" in readme for name in there} == {True}
    assert {"dialogue.py", "own_embedder.py", "memcore-sqlite"} < there
