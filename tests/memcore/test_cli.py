"""The command line, as a user meets it: output, exit codes, one clear line per mistake."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_runner import run

import memcore
from memcore import plugins

FAR = """
from memcore import Component, hookimpl

@hookimpl
def memcore_backends():
    return [Component(name='far', summary='x', load=dict, requires=('nope',), install='far[pkg]')]
"""


@pytest.fixture
def fresh_registry() -> Any:
    """Plugins installed by a test are found by the command line, and forgotten afterwards."""
    plugins.registry.cache_clear()
    yield
    plugins.registry.cache_clear()


def ask(folder: str, *more: str, text: str = "w1 w2 w3 " * 100, question: str = "w4 w5") -> Any:
    return run("ask", folder, "--file", "-", "--question", question, "--max-new-tokens", "3", *more, stdin=text)


@pytest.mark.parametrize("arguments", [["--help"], ["ask", "--help"], ["demo", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom memcore.cli import app\n"
        f"try:\n    app({arguments!r})\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_memcore_imports_nothing_heavy() -> None:
    code = (
        "import sys, memcore\nassert 'wrap' in dir(memcore)\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_public_name_can_be_had() -> None:
    for name in memcore.__all__:
        assert getattr(memcore, name) is not None


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'warp'"):
        _ = memcore.warp


def test_version() -> None:
    assert run("--version").output == f"memcore {memcore.__version__}\n"


def test_the_command_line_is_a_module_too() -> None:
    done = subprocess.run([sys.executable, "-m", "memcore", "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "Usage: memcore [OPTIONS] COMMAND [ARGS]...")


def test_plugins_shows_components_and_their_plugins() -> None:
    result = run("plugins")
    assert result.exit_code == 0
    for name in ("builtin", "hnswlib", "subblock", "memlong", "qwen2"):
        assert name in result.output


@pytest.mark.usefixtures("fresh_registry")
def test_plugins_shows_what_is_wrong(plugin_folder: Any) -> None:
    plugin_folder("broken", "raise RuntimeError('no such driver')")
    result = run("plugins")
    assert result.exit_code == 0
    assert "no such driver" in result.output


@pytest.mark.usefixtures("fresh_registry")
def test_plugins_as_json(plugin_folder: Any) -> None:
    plugin_folder("far", FAR)
    found = json.loads(run("plugins", "--json").output)
    entry = next(each for each in found["components"] if each["name"] == "far")
    assert entry["available"] is False
    assert entry["missing"] == 'nope is not installed: pip install "far[pkg]"'


@pytest.mark.usefixtures("fresh_registry")
@pytest.mark.parametrize("command", ["plugins", "doctor"])
def test_what_to_install_is_shown_as_it_is(plugin_folder: Any, command: str) -> None:
    plugin_folder("far", FAR)
    assert 'pip install "far[pkg]"' in run(command).output


def test_doctor_as_json() -> None:
    result = run("doctor", "--json")
    assert result.exit_code == 0
    found = json.loads(result.output)
    assert found["packages"]["memcore"] == memcore.__version__
    assert {"torch", "numpy", "accelerate", "peft", "matplotlib", "faiss-gpu", "xxhash"} <= found["packages"].keys()
    assert not {"memcore-llm", "mkdocs", "ruff"} & found["packages"].keys()
    assert found["backends"]["exact"] == "ok"
    assert "threads" in found["devices"]["cpu"]


@pytest.mark.usefixtures("fresh_registry")
def test_doctor_fails_when_a_plugin_is_broken(plugin_folder: Any) -> None:
    plugin_folder("broken", "raise RuntimeError('no such driver')")
    result = run("doctor")
    assert result.exit_code == 1
    assert "no such driver" in result.output


@pytest.mark.parametrize("length", [1, 40, 400])
def test_ask_answers_from_a_text_of_any_length(tiny_folder: str, length: int) -> None:
    result = ask(tiny_folder, "--window", "128", text="w7 " * length)
    assert result.exit_code == 0, result.output
    assert f"read {length} tokens" in result.stderr
    assert len(result.stdout.split()) == 3


def test_ask_reads_once_and_answers_each_question_as_if_alone(tiny_folder: str) -> None:
    alone = [ask(tiny_folder, "--window", "128", question=each).stdout.strip() for each in ("w4 w5", "w9")]
    both = ask(tiny_folder, "--window", "128", "--question", "w9")
    assert both.stdout.split("\n")[:4] == ["w4 w5", alone[0], "w9", alone[1]]


def test_ask_shows_passages(tiny_folder: str) -> None:
    result = ask(tiny_folder, "--window", "128", "--passages")
    assert re.search(r"\[\d+, layers 0, 1\] w\d", result.stdout)


def test_ask_explains_what_each_token_rests_on(tiny_folder: str) -> None:
    result = ask(tiny_folder, "--window", "128", "--explain")
    answer, *lines = result.stdout.strip().split("\n")
    tokens = [line for line in lines if re.match(r"'w\d+' at \d+: \d+\.\d% from memory: \[\d+\] \d", line)]
    assert [line.split("'")[1] for line in tokens] == answer.split()
    assert re.match(r" *\d+\.\d% \[\d+\] w\d", lines[0])


def test_ask_takes_a_configuration_file_and_options_beside_it(tiny_folder: str, tmp_path: Path) -> None:
    (tmp_path / "memory.toml").write_text("window = 256\nchunk_size = 32\n")
    result = ask(tiny_folder, "--config", str(tmp_path / "memory.toml"), "--window", "64")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--window", "10"], "window (10) must hold at least one chunk"),
        (["--top-k", "0"], "top_k must be an integer of at least 1, or None for"),
        (["--backend", "exakt"], "no backend 'exakt', did you mean 'exact'?"),
        (["--config", "none.toml"], "cannot read the configuration file"),
        (["--question", " "], "a question is empty"),
    ],
)
def test_a_mistake_gets_one_line(tiny_folder: str, more: list[str], says: str) -> None:
    result = ask(tiny_folder, *more)
    assert result.exit_code == 1
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_text_is_refused(tiny_folder: str, text: str) -> None:
    assert "has no text in it" in ask(tiny_folder, text=text).stderr


def test_a_file_that_is_no_text_is_refused(tiny_folder: str, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"\xff\xfe\x00")
    result = run("ask", tiny_folder, "--file", str(tmp_path / "image"), "--question", "w1")
    assert result.exit_code == 1
    assert "as UTF-8 text" in result.stderr


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    result = ask(str(tmp_path / "none"))
    assert result.exit_code == 1
    assert "there is no folder" in result.stderr


def test_debug_shows_the_traceback(tiny_folder: str) -> None:
    result = run("--debug", "ask", tiny_folder, "--file", "-", "--question", "w1", stdin="")
    assert isinstance(result.exception, memcore.MemcoreError)


def test_demo_needs_more_than_the_window(tiny_folder: str) -> None:
    result = run("demo", "--model", tiny_folder, "--tokens", "100")
    assert result.exit_code == 1
    assert "tokens must be at least twice the window (2048)" in result.stderr


def test_demo_shows_every_fact_and_method(tiny_folder: str) -> None:
    result = run("demo", "--model", tiny_folder, "--tokens", "600", "--window", "128", "--facts", "2")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("hidden at token") == 2
    for method in ("without memory", "with memory", "full attention"):
        assert result.stdout.count(method) == 3
    assert "passages retrieved" in result.stdout


@pytest.mark.model
@pytest.mark.slow
def test_demo_finds_facts_with_the_real_model() -> None:
    result = run("demo", "--tokens", "4000", "--facts", "2")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("full attention  right") == 2
