"""A conversation of many turns, which the model does not forget when it outlives the window.

    python examples/dialogue.py --window 512

The user of ``dialogue.txt`` talks with the model about a long text, tells it things in passing, and asks for them when
they have long left the window. The conversation is held twice: with memory, and by the same model with its window and
the first tokens only. What the model replies is part of the conversation, so the two may go different ways.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import attrs
import typer
from rich.console import Console

import memcore
from memcore.demo.text import first_tokens, language_reference
from memcore.demo.weights import demo_model_path
from memcore.model_source import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SCRIPT = Path(__file__).with_suffix(".txt")

console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)


@attrs.frozen
class Line:
    """One line of the script: ``"say"`` something, ``"ask"`` for what was told before, or ``"read"`` a passage."""

    what: str
    text: str = ""
    expected: str = ""


@attrs.frozen(kw_only=True)
class Reply:
    """What the model replied to a question.

    Attributes:
        text: the reply.
        right: whether what was expected is in it.
        tokens_ago: how far back what was expected was last said, None if it was not.
    """

    text: str
    right: bool
    tokens_ago: int | None


def script(text: str) -> list[Line]:
    """Return the lines of a script; ``dialogue.txt`` says how one is written."""
    lines = []
    for number, written in enumerate(text.splitlines(), start=1):
        what, _, rest = written.strip().partition(" ")
        said, _, expected = (part.strip() for part in rest.partition("|"))
        if not what or what.startswith("#"):
            continue
        if what not in ("say", "ask", "read") or (what == "read") == bool(said) or (what == "ask") != bool(expected):
            raise typer.BadParameter(
                f"line {number} of the script must be 'read', 'say TEXT' or 'ask QUESTION | ANSWER', got {written!r}"
            )
        lines.append(Line(what, said, expected))
    return lines


def passages(text: str, tokens: int, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Yield one passage of a text after the other, whole paragraphs of at most so many tokens if there are any."""
    while text.strip():
        passage = first_tokens(text, tokens, tokenizer)
        yield passage
        text = text[len(passage) :].lstrip()


def converse(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: memcore.MemoryConfig,
    lines: Sequence[Line],
    reading: Iterator[str],
    *,
    max_new_tokens: int,
    show: bool = False,
) -> list[Reply]:
    """Hold the conversation and return the replies to what was asked."""
    replies = []
    memcore.wrap(model, config)
    try:
        chat = memcore.Chat(model, tokenizer)
        for line in lines:
            if line.what == "read":
                if not (passage := next(reading, "")):
                    raise typer.BadParameter("the text is too short for all that is to be read of it")
                chat.read(passage)
                continue
            so_far = str(tokenizer.decode(chat.token_ids()[0])) if line.what == "ask" else ""
            reply = chat.say(line.text, max_new_tokens=max_new_tokens).text
            if line.what == "ask":
                replies.append(
                    Reply(
                        text=reply,
                        right=bool(occurrences(line.expected, reply)),
                        tokens_ago=tokens_after(line.expected, so_far, tokenizer),
                    )
                )
            if show:
                console.print(f"> {line.text}\n{reply}")
        if show:
            console.print(f"({chat.tokens:,} tokens)")
    finally:
        memcore.unwrap(model)
    return replies


def occurrences(words: str, text: str) -> list[int]:
    """Return where in a text these words end."""
    return [found.end() for found in re.finditer(rf"\b{re.escape(words)}\b", text, re.IGNORECASE)]


def tokens_after(words: str, text: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return how many tokens stand after the last occurrence of these words, None if there is none."""
    ends = occurrences(words, text)
    return len(tokenizer(text[ends[-1] :], add_special_tokens=False)["input_ids"]) if ends else None


def main(
    file: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="The text to talk about, UTF-8; Python's language reference if left out."
        ),
    ] = None,
    dialogue: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="What is said.")] = SCRIPT,
    model: Annotated[str, typer.Option(help="Hub id or folder; the demo's Gemma 3 270M if left out.")] = "",
    turns: Annotated[int | None, typer.Option(help="How many turns to take; all of them if left out.")] = None,
    passage_tokens: Annotated[int, typer.Option(help="How much is read at a time.")] = 400,
    window: Annotated[int, typer.Option(help="Tokens that the model attends to directly.")] = 512,
    chunk_size: Annotated[int, typer.Option(help="Tokens per chunk of the memory.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply.")] = 24,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, or auto for the checkpoint's own.")] = "auto",
    show: Annotated[bool, typer.Option("--show", help="Show all that is said, not the questions only.")] = False,
) -> None:
    """Hold a long conversation with memory and without, and count what is remembered."""
    lines = script(dialogue.read_text(encoding="utf-8"))
    taken = [index for index, line in enumerate(lines) if line.what != "read"][:turns]
    if not taken:
        raise typer.BadParameter("there are no turns to take")
    lines = lines[: taken[-1] + 1]
    text = file.read_text(encoding="utf-8") if file else language_reference()
    loaded, tokenizer = load_model(model or str(demo_model_path()), dtype=dtype)
    config = memcore.MemoryConfig(window=window, chunk_size=chunk_size)
    # A model that remembers in none of its layers has its window and the first tokens, no more.
    ways = {"with memory": config, "without": attrs.evolve(config, layers=())}
    held = {}
    for way, memory in ways.items():
        if show:
            console.print(f"\n=== {way} ===", style="bold")
        held[way] = converse(
            loaded,
            tokenizer,
            memory,
            lines,
            passages(text, passage_tokens, tokenizer),
            max_new_tokens=max_new_tokens,
            show=show,
        )
    asked = [line for line in lines if line.what == "ask"]
    for index, line in enumerate(asked):
        console.print(f"\n{line.text} ({line.expected})", style="bold")
        for way, replies in held.items():
            reply = replies[index]
            ago = "never said" if reply.tokens_ago is None else f"said {reply.tokens_ago:,} tokens ago"
            console.print(f"  {way:<11} {'right' if reply.right else 'wrong'}  {' '.join(reply.text.split())}  ({ago})")
    console.print(f"\nRemembered in {len(taken)} turns, with a window of {window:,} tokens:")
    for way, replies in held.items():
        console.print(f"  {way:<11} {sum(reply.right for reply in replies)} of {len(asked)}")


if __name__ == "__main__":
    typer.run(main)
