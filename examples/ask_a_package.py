"""A code base as memory: what do the functions of an installed Python package do?

    python examples/ask_a_package.py pluggy

All of the package's source is read once, into a session. Then the model is given the first line of some of its
functions and has to go on with what their docstrings say: with memory, and with its window and the first tokens only. A
function of its own, ``--ask``, need not exist: what comes then shows what a made-up answer looks like.

What to expect. A base model of 270M parameters copies: it finds the definition and writes down the docstring that
stands there, which is a question about the code that it can answer. It does not understand the code. Questions such as
"why is this slow?" or "where is this called?" need a larger model, and one that was taught to answer.
"""

from __future__ import annotations

import ast
import importlib.util
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import attrs
import typer
from rich.console import Console

import memcore
from memcore.demo.weights import demo_model_path
from memcore.model_source import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WORDS = 4
"""Words of a docstring that must come back for an answer to be right."""

console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)


@attrs.frozen(kw_only=True)
class Question:
    """What a function does.

    Attributes:
        start: its first line, with the beginning of a docstring.
        docstring: the first line of that, empty if it is not known.
    """

    start: str
    docstring: str

    def is_answered_by(self, text: str) -> bool:
        """Say whether a text begins as the docstring does."""
        expected, written = (re.findall(r"\w+", each)[:WORDS] for each in (self.docstring, text))
        return expected == written


def source_files(package: str) -> list[Path]:
    """Return the Python files of an installed package or module, the largest last."""
    try:
        found = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        found = None
    if found is None or not (found.submodule_search_locations or (found.origin or "").endswith(".py")):
        raise typer.BadParameter(f"there is no package {package!r} with Python source here")
    places = list(found.submodule_search_locations or [])
    files = [file for place in places for file in Path(place).rglob("*.py")] or [Path(str(found.origin))]
    return sorted(files, key=lambda file: (file.stat().st_size, file))


def documented_functions(source: str) -> list[Question]:
    """Return those functions of a file whose docstrings begin with a sentence in one line, each name once."""
    found = {}
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (docstring := ast.get_docstring(node)):
            first = docstring.splitlines()[0]
            # A definition that fits a line: it is the question, and names what is asked about.
            if node.body[0].lineno == node.lineno + 1 and len(re.findall(r"\w+", first)) > WORDS:
                start = lines[node.lineno - 1]
                indent = " " * (len(start) - len(start.lstrip()) + 4)
                found[node.name] = Question(start=f'{start}\n{indent}"""', docstring=first)
    return list(found.values())


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    questions: list[Question],
    config: memcore.MemoryConfig,
) -> list[str]:
    """Read a text once and return how the model goes on from each question, up to the end of the line."""
    memcore.wrap(model, config)
    try:
        session = memcore.Session(model, "source", tokenizer)
        session.ingest(text)
        # As token ids: source is to be gone on with, whatever the model was taught.
        starts = [tokenizer(each.start, add_special_tokens=False)["input_ids"] for each in questions]
        return [session.ask(start, max_new_tokens=24).text.strip().partition("\n")[0] for start in starts]
    finally:
        memcore.unwrap(model)


def main(
    package: Annotated[str, typer.Argument(help="Name of an installed package, as it is imported.")] = "pluggy",
    questions: Annotated[int, typer.Option(min=1, help="Functions to ask about.")] = 6,
    ask: Annotated[
        list[str] | None, typer.Option(help="The first line of a function to ask about, e.g. 'def close(self):'.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Which functions.")] = 0,
    model: Annotated[str, typer.Option(help="Hub id or folder; the demo's Gemma 3 270M if left out.")] = "",
    characters: Annotated[int, typer.Option(help="How much source to read, whole files, the smallest first.")] = 60_000,
    window: Annotated[int, typer.Option(help="Tokens that the model attends to directly.")] = 1024,
    chunk_size: Annotated[int, typer.Option(help="Tokens per chunk of the memory.")] = 32,
) -> None:
    """Ask what the functions of a package do."""
    text, known = "", []
    for file in source_files(package):
        source = file.read_text(encoding="utf-8")
        if text and len(text) + len(source) > characters:
            break
        text += f"# {file.name}\n\n{source}\n\n"
        known += documented_functions(source)
    chosen = random.Random(seed).sample(known, min(questions, len(known)))
    chosen += [Question(start=f'{each}\n    """', docstring="") for each in ask or ()]
    if not chosen:
        raise typer.BadParameter(f"no function of {package} has a docstring; give one to ask about, --ask")
    loaded, tokenizer = load_model(model or str(demo_model_path()))
    console.print(f"{package}: {len(text):,} characters of source, {len(known)} functions with a docstring")
    config = memcore.MemoryConfig(window=window, chunk_size=chunk_size)
    # A model that remembers in none of its layers has its window and the first tokens, no more.
    ways = {"with memory": config, "window only": attrs.evolve(config, layers=())}
    replies = {way: answers(loaded, tokenizer, text, chosen, memory) for way, memory in ways.items()}
    for index, question in enumerate(chosen):
        console.print(f"\n{question.start.splitlines()[0].strip()}", style="bold")
        console.print(f"  {'docstring':<12}{question.docstring or 'not known'}")
        for way in ways:
            mark = ("right  " if question.is_answered_by(replies[way][index]) else "wrong  ") * bool(question.docstring)
            console.print(f"  {way:<12}{mark}{replies[way][index]}")
    scored = [index for index, question in enumerate(chosen) if question.docstring]
    console.print(f"\nThe first {WORDS} words are those of the docstring, of {len(scored)} functions:")
    for way in ways:
        console.print(f"  {way:<12}{sum(chosen[index].is_answered_by(replies[way][index]) for index in scored)}")


if __name__ == "__main__":
    typer.run(main)
