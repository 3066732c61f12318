"""Every block of code on a page is run, or held against what it names.

Code of one page shares its names, as a reader's would. It runs in a folder where what pages speak of is there:
``novel.txt``, and models by their names. Those are folders, which ``from_pretrained`` and the command line take as they
take ids of the hub; in each lies a tiny model. Pages that load the demo's model by themselves have that one, and what
they print is what the page says.

- ``python``: run. A following ``text`` block with the title "Output" is what it printed, where ``...`` is anything.
- ``sh``, and indented blocks: see ``page_commands.py``.
- ``toml``, ``yaml``, ``json``: read, and written to the file that a comment in the first line names.
- A block whose title begins with "Not run:" is left out; the title tells readers why.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import json
import logging
import re
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from page_blocks import NOT_RUN, PAGES, ROOT, Block, blocks
from page_commands import check_command, commands

import memcore
from memcore.model_source import load_model
from memcore.plugins import registry

MODELS: Final = ("MODEL", "GEMMA", "Qwen/Qwen2.5-0.5B-Instruct", "google/gemma-3-270m")
TEXTS: Final = ("novel.txt", "emma.txt", "reference.txt", "a_very_long_text.txt")

ELSEWHERE: Final = {
    "docs/add-a-family.md": "tests/adapters/test_family_table.py",
    "docs/costs.md": "tests/memcore/test_cli_plan.py",
    "docs/evaluation.md": "tests/memcore/test_eval_page.py",
    "docs/memlong.md": "tests/end_to_end/test_pages.py",
    "docs/observability.md": "tests/end_to_end/test_observability_page.py",
    "docs/plugins.md": "tests/end_to_end/test_pages.py",
    "docs/serve.md": "tests/memcore/test_cli_serve.py",
    "docs/training.md": "tests/memcore/test_training_page.py",
    "docs/write-a-backend.md": "tests/end_to_end/test_pages.py",
}
"""Pages whose code needs more than a folder: the tests that run it."""

SLOW: Final = ("docs/first-memory.md", "docs/novel.md")
"""Pages that take more than seconds, with the demo's model."""

SAID: Final = "w5 w6\nw7\n"
"""What is said to commands that listen."""


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def world(tmp_path: Path, tiny_folder: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where what pages speak of is there."""
    monkeypatch.chdir(tmp_path)
    for model in MODELS:
        Path(model).parent.mkdir(parents=True, exist_ok=True)
        Path(model).symlink_to(tiny_folder)
    for text in TEXTS:
        Path(text).write_text(" ".join(f"w{n * n % 90}" for n in range(2600)))
    return tmp_path


@pytest.fixture
def undone() -> Iterator[None]:
    """What pages do to the process is undone: loggers that they set up, plugins that they register."""
    loggers = [logging.getLogger(), logging.getLogger("memcore")]
    before = [(each.level, each.propagate, [*each.handlers]) for each in loggers]
    registry.cache_clear()
    yield
    registry.cache_clear()
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.propagate, logger.handlers = propagate, handlers
        logger.setLevel(level)  # forgets what was cached of the other one


def wrapped(tiny: str) -> dict[str, Any]:
    """Names of a page that begins with a model that has a memory and a prompt longer than its window."""
    model, tokenizer = load_model(tiny, device="cpu")
    memcore.wrap(model, window=32, chunk_size=8, top_k=2, question_tokens=4)
    return {"model": model, "tokenizer": tokenizer, "prompt": tokenizer("w5 w6 " * 60, return_tensors="pt")}


def plain(tiny: str) -> dict[str, Any]:
    """Names of a page that begins with a model, its tokenizer and a prompt."""
    model, tokenizer = load_model(tiny, device="cpu")
    return {"model": model, "tokenizer": tokenizer, "prompt": tokenizer("w5 w6 " * 60, return_tensors="pt")}


def plain_with_sqlite(tiny: str) -> dict[str, Any]:
    """Names of a page that begins with a model and, installed, the plugin that it is about."""
    registry().register(import_module("memcore_sqlite.plugin"), "sqlite")
    return plain(tiny)


GIVEN: Final[dict[str, Callable[[str], dict[str, Any]]]] = {
    "docs/trace.md": wrapped,
    "docs/backends.md": plain,
    "docs/faiss.md": plain,
    "examples/memcore-metrics/README.md": plain,
    "examples/memcore-sqlite/README.md": plain_with_sqlite,
}
"""What a page says that its reader has."""


PERCENTAGE: Final = re.compile(r"\d+\.\d%")


def same_output(said: str, printed: str) -> bool:
    """Whether a page says what was printed, but for ``...``, white space, and the last digit of percentages.

    Other processors add up in another order.
    """
    there = [float(each[:-1]) for each in PERCENTAGE.findall(printed)]
    near = all(min(abs(float(each[:-1]) - other) for other in there) < 1 for each in PERCENTAGE.findall(said))
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    said, printed = PERCENTAGE.sub("N%", said), PERCENTAGE.sub("N%", printed)
    return near and doctest.OutputChecker().check_output(said, printed, options)


class Reader:
    """Does what a page says, from its top to its end."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.names = names
        self.printed = ""

    def do(self, block: Block) -> None:
        if block.title.startswith(NOT_RUN):
            return
        match block.language:
            case "python" | "pycon":
                self._python(block)
            case "sh":
                self._commands(block)
            case "" if block.fence == "":
                self._commands(block)
            case "toml" | "yaml" | "json":
                self._data(block)
            case "text" if block.title == "Output":
                assert same_output(block.text, self.printed), f"{block} says\n{block.text}\nnot\n{self.printed}"
            case "" | "text" | "mermaid":
                pass
            case other:
                raise AssertionError(f"{block}: what is to be done with {other}?")

    def _python(self, block: Block) -> None:
        if block.text.startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(block.text, self.names, str(block), None, None)
            assert not doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed
            return
        code = compile(ast.parse("\n" * (block.line - 1) + block.text), str(block.page), "exec")
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, self.names)
        self.printed = out.getvalue()

    def _commands(self, block: Block) -> None:
        if hasattr(self.names.get("model"), "memory"):
            memcore.unwrap(self.names["model"])  # a command finds the memory closed, as another process would
        self.printed = "".join(check_command(words, SAID) for words in commands(block))

    def _data(self, block: Block) -> None:
        readers: dict[str, Callable[[str], Any]] = {"toml": tomllib.loads, "yaml": yaml.safe_load, "json": json.loads}
        readers[block.language](block.text)
        if file := re.match(r"# ([\w.-]+\.\w+)", block.text):
            Path(file[1]).write_text(block.text, encoding="utf-8")


@pytest.fixture
def unwrapped() -> Iterator[list[Any]]:
    """Models whose memories are closed in the end."""
    models: list[Any] = []
    yield models
    for model in models:
        if hasattr(model, "memory"):
            memcore.unwrap(model)


RUN = [page for page in PAGES if name(page) not in ELSEWHERE and blocks(page)]


@pytest.mark.usefixtures("world", "undone")
@pytest.mark.timeout(900)  # a busy machine
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, id=name(p), marks=[pytest.mark.slow, pytest.mark.tutorial] if name(p) in SLOW else [])
        for p in RUN
    ],
)
def test_the_code_on_the_page_runs(page: Path, tiny_folder: str, unwrapped: list[Any]) -> None:
    given = GIVEN.get(name(page))
    reader = Reader({"__name__": "page", **(given(tiny_folder) if given else {})})
    try:
        for block in blocks(page):
            reader.do(block)
    except memcore.MissingDependencyError as error:
        pytest.skip(str(error))
    finally:
        unwrapped.append(reader.names.get("model"))


@pytest.mark.parametrize(("page", "test"), ELSEWHERE.items())
def test_what_is_run_elsewhere_is(page: str, test: str) -> None:
    assert (ROOT / page).exists()
    assert Path(page).name in (ROOT / test).read_text(encoding="utf-8")


def test_few_blocks_are_not_run_and_say_why() -> None:
    left_out = [block for page in PAGES for block in blocks(page) if block.title.startswith(NOT_RUN)]
    assert all(len(block.title) > len(NOT_RUN) + 10 for block in left_out)
    assert len(left_out) <= 3, "\n".join(map(str, left_out))
