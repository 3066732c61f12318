"""Questions about a document that is far longer than the model's window.

    python examples/question_answering.py --file contract.txt --question "The period of notice is"

The document is read once. Then every question is asked from there, with memory and by the same model with its window
and the first tokens only. Under each answer stand the passages that it rests on most, with their share of attention: an
answer without a passage that says it is a guess.

Without a document of yours it is three pages of memcore's own documentation, which no model was trained on, and the
questions of ``questions.txt``, with the answers that they should have. A base model cannot be asked, only be made to go
on: a question is the beginning of a sentence. A model that was taught to chat is asked through its chat template.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import typer
from rich.console import Console

import memcore
from memcore.demo.text import first_tokens
from memcore.demo.weights import demo_model_path
from memcore.model_source import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

QUESTIONS = Path(__file__).with_name("questions.txt")
PAGES = [Path(__file__).parents[1] / "docs" / name for name in ("lmdb-format.md", "reliability.md", "sessions.md")]

console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)


@attrs.frozen(kw_only=True)
class Reply:
    """What was answered.

    Attributes:
        text: the answer, up to the end of its line.
        passages: what it rests on: shares of the attention, from 0 to 1, and texts; the largest first.
    """

    text: str
    passages: list[tuple[float, str]]


def read_questions(text: str) -> list[tuple[str, str]]:
    """Return questions and expected answers: ``QUESTION | ANSWER`` in each line that is not empty or a comment."""
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    pairs = [tuple(part.strip() for part in line.split("|")) for line in lines]
    for line, pair in zip(lines, pairs, strict=True):
        if len(pair) != 2 or not all(pair):
            raise typer.BadParameter(f"a line of the questions must be 'QUESTION | ANSWER', got {line!r}")
    return [(question, expected) for question, expected in pairs]


def answer_all(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    document: str,
    questions: Sequence[str],
    config: memcore.MemoryConfig,
    *,
    max_new_tokens: int,
) -> list[Reply]:
    """Read a document once and answer every question from there, as if it were the only one."""
    wrapped: Any = memcore.wrap(model, config)
    replies = []
    try:
        session = memcore.Session(wrapped, "document", tokenizer)
        session.ingest(document)
        for question in questions:
            with wrapped.memory.trace() as trace:
                text = session.ask(question, max_new_tokens=max_new_tokens).text
            passages = [
                (passage.share, " ".join(str(tokenizer.decode(passage.token_ids)).split()))
                for passage in trace.passages()
            ]
            replies.append(Reply(text=text.strip().partition("\n")[0], passages=passages))
    finally:
        memcore.unwrap(model)
    return replies


def is_right(reply: str, expected: str) -> bool:
    """Say whether what was expected is in a reply, as words of their own."""
    return re.search(rf"(?<!\w){re.escape(expected)}(?!\w)", reply, re.IGNORECASE) is not None


def main(
    file: Annotated[
        list[Path] | None,
        typer.Option(exists=True, dir_okay=False, help="A document, UTF-8; several are read as one."),
    ] = None,
    question: Annotated[list[str] | None, typer.Option(help="What to ask; may be repeated.")] = None,
    questions: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="Questions with their answers, if none is asked.")
    ] = QUESTIONS,
    model: Annotated[str, typer.Option(help="Hub id or folder; the demo's Gemma 3 270M if left out.")] = "",
    tokens: Annotated[int | None, typer.Option(help="How much of the document to read; all of it if left out.")] = None,
    window: Annotated[int, typer.Option(help="Tokens that the model attends to directly.")] = 1024,
    chunk_size: Annotated[int, typer.Option(help="Tokens per chunk of the memory.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 16,
) -> None:
    """Ask about a long document, with memory and without."""
    loaded, tokenizer = load_model(model or str(demo_model_path()))
    document = "\n\n".join(path.read_text(encoding="utf-8") for path in file or PAGES)
    if tokens is not None:
        document = first_tokens(document, tokens, tokenizer)
    asked = [(each, "") for each in question or ()] or read_questions(questions.read_text(encoding="utf-8"))
    config = memcore.MemoryConfig(window=window, chunk_size=chunk_size)
    # A model that remembers in none of its layers has its window and the first tokens, no more.
    ways = {"with memory": config, "window only": attrs.evolve(config, layers=())}
    texts = [each for each, _ in asked]
    replies = {
        way: answer_all(loaded, tokenizer, document, texts, memory, max_new_tokens=max_new_tokens)
        for way, memory in ways.items()
    }
    for index, (each, expected) in enumerate(asked):
        console.print(f"\n{each} …{f' ({expected})' if expected else ''}", style="bold")
        for way in ways:
            reply = replies[way][index]
            mark = ("right " if is_right(reply.text, expected) else "wrong ") if expected else ""
            console.print(f"  {way}  {mark}{reply.text}")
            for share, passage in reply.passages[:2]:
                console.print(f"    {share:5.1%} {passage}", style="dim")
    if all(expected for _, expected in asked):
        console.print(f"\nAnswered, of {len(asked)}, with a window of {window:,} tokens:")
        for way in ways:
            right = sum(is_right(replies[way][index].text, expected) for index, (_, expected) in enumerate(asked))
            console.print(f"  {way}  {right}")


if __name__ == "__main__":
    typer.run(main)
