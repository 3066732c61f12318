"""Summarise a text that is far longer than the model's window.

    python examples/summarise.py --file novel.txt --window 1024

The text is read once, into a session. Then the model is asked for what the text says on each of several themes, and
for a summary made of these notes. A memory brings back the passages that a question is about, and no question is about
everything: asking theme by theme is what makes a summary of it.

The same is done by the same model without a memory, which has its window and the first tokens only, and, with
``--full``, by full attention. Two numbers compare them. *Names*: how many of the text's frequent names the notes and
the summary mention, not counting those that were asked for; it tells what they are about, not whether they are true.
*Reference*: the mean log-probability per token of a summary that you wrote, ``--reference``, after the text; the nearer
to 0, the less it surprises the model. This one depends on what the model has kept of the text and not on how well it
writes, so it is the one to trust with a small model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import torch
import typer
from rich.console import Console
from rich.table import Table

import memcore
from memcore.cache_argument import cache_argument
from memcore.demo.text import first_tokens, language_reference
from memcore.demo.weights import demo_model_path
from memcore.model_source import load_model
from memcore.prompt import closing

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from memcore.trace import Trace

ROOM = 2048
"""Tokens for questions and answers beside the text, where the window is to hold everything."""

console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)


@attrs.frozen(kw_only=True)
class Wording:
    """How a model is asked: one that was taught to follow instructions, or one that can only go on writing."""

    theme: str
    summary: str
    whole: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Wording:
        """Return the wording for the model that has this tokenizer."""
        if tokenizer.chat_template:
            return cls(
                theme="What does this text say about {theme}? Answer in one or two sentences.",
                summary="Notes on this text:\n{notes}\n\nSummarise the text in three sentences.",
                whole="Summarise this text in three sentences.",
            )
        return cls(
            theme="What this text says about {theme}, in short: {theme}",
            summary="Notes on this text:\n{notes}\n\nSummary of this text: It is about",
            whole="Summary of this text:",
        )


@attrs.frozen(kw_only=True)
class Note:
    """What the text says on a theme.

    Attributes:
        theme: what was asked about.
        text: the answer.
        passages: what came back from memory for it: the share of the attention that each passage got while the answer
            was written, from 0 to 1, and its text; the largest share first.
    """

    theme: str
    text: str
    passages: list[tuple[float, str]]


@attrs.frozen(kw_only=True)
class Summary:
    """What came of a text.

    Attributes:
        notes: one for each theme.
        text: the summary made of them.
        reference: mean log-probability per token of the reference, None without one.
    """

    notes: list[Note]
    text: str
    reference: float | None

    def mentions(self, names: Sequence[str]) -> list[str]:
        """Return those of the names that stand in the notes or the summary."""
        written = " ".join([*(note.text for note in self.notes), self.text])
        return [name for name in names if re.search(rf"\b{name}\b", written)]


def summarise(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    config: memcore.MemoryConfig,
    *,
    themes: Sequence[str],
    reference: str = "",
    max_new_tokens: int = 48,
) -> Summary:
    """Read a text once and summarise it theme by theme."""
    wording, notes = Wording.of(tokenizer), []
    wrapped: Any = memcore.wrap(model, config)
    try:
        session = memcore.Session(wrapped, "text", tokenizer)
        session.ingest(text)
        # Every question goes on from the memory as reading left it: none of them knows of the others.
        for theme in themes:
            with wrapped.memory.trace() as trace:
                answer = session.ask(wording.theme.format(theme=theme), max_new_tokens=max_new_tokens)
            notes.append(Note(theme=theme, text=sentences(answer.text), passages=passages(trace, tokenizer)))
        listed = "\n".join(f"- {note.theme}: {note.text}" for note in notes)
        summary = session.ask(wording.summary.format(notes=listed), max_new_tokens=2 * max_new_tokens).text
        score = log_probability(session, tokenizer, wording.whole, reference) if reference else None
    finally:
        memcore.unwrap(model)
    return Summary(notes=notes, text=sentences(summary), reference=score)


def passages(trace: Trace, tokenizer: PreTrainedTokenizerBase) -> list[tuple[float, str]]:
    """Return what was read from memory, by its share of the attention, the largest first."""
    return [(passage.share, " ".join(str(tokenizer.decode(passage.token_ids)).split())) for passage in trace.passages()]


@torch.no_grad()
def log_probability(session: memcore.Session, tokenizer: PreTrainedTokenizerBase, question: str, reply: str) -> float:
    """Return the mean log-probability per token of a reply, which is read as it would be written: token by token."""
    asked = closing(tokenizer, question)
    space = "" if tokenizer.chat_template else " "
    replied = tokenizer(space + reply.strip(), add_special_tokens=False, return_tensors="pt")["input_ids"]
    model: Any = session.model
    name = cache_argument(model.forward)
    cache, scores, pieces = session.cache(), [], [asked, *replied[0, :-1].view(-1, 1, 1)]
    for piece, token in zip(pieces, replied[0].tolist(), strict=True):
        logits = model(input_ids=piece.to(model.device), **{name: cache}, use_cache=True).logits
        scores.append(float(logits[0, -1].float().log_softmax(dim=-1)[token]))
    return sum(scores) / len(scores)


def sentences(text: str) -> str:
    """Return the first paragraph of what was written, up to the end of its last whole sentence."""
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    whole = re.match(r".*[a-z0-9]{3}[.!?][\"”’']?(?=\s|$)", paragraph)  # "Mr." ends no sentence
    return whole.group() if whole else paragraph


def frequent_names(text: str, count: int) -> list[str]:
    """Return the words that the text often writes with a capital and never without one, the most frequent first."""
    words = Counter(re.findall(r"\b[A-Za-z]{4,}\b", text))
    names = [word for word, _ in words.most_common() if word[0].isupper() and word.lower() not in words]
    return [name for name in names if words[name] >= 3][:count]


def main(
    file: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="The text, UTF-8; Python's language reference if left out."),
    ] = None,
    model: Annotated[str, typer.Option(help="Hub id or folder; the demo's Gemma 3 270M if left out.")] = "",
    tokens: Annotated[int, typer.Option(help="How much of the text to read.")] = 8000,
    window: Annotated[int, typer.Option(help="Tokens that the model attends to directly.")] = 1024,
    chunk_size: Annotated[int, typer.Option(help="Tokens per chunk of the memory.")] = 64,
    theme: Annotated[
        list[str] | None, typer.Option(help="What to ask about, may be repeated; the most frequent names if left out.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A good summary of the text, to be scored.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest note; the summary may have twice as many.")] = 48,
    full: Annotated[bool, typer.Option(help="Also by full attention, which takes time and memory.")] = False,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, or auto for the checkpoint's own.")] = "auto",
) -> None:
    """Summarise a text with memory, and without."""
    loaded, tokenizer = load_model(model or str(demo_model_path()), dtype=dtype)
    text = first_tokens(file.read_text(encoding="utf-8") if file else language_reference(), tokens, tokenizer)
    themes = theme or frequent_names(text, 5)
    asked = re.findall(r"\w+", " ".join(themes))
    names = [name for name in frequent_names(text, 20) if name not in asked]
    config = memcore.MemoryConfig(window=window, chunk_size=chunk_size)
    # A model that remembers in none of its layers has its window and the first tokens, no more; and one whose window
    # holds everything attends to everything.
    ways = {"with memory": config, "window only": attrs.evolve(config, layers=())}
    if full:
        ways["full attention"] = attrs.evolve(config, window=tokens + ROOM)
    table = Table("", f"names, of {len(names)}", "reference", box=None)
    for way, memory in ways.items():
        with console.status(f"{way} ..."):
            summary = summarise(
                loaded,
                tokenizer,
                text,
                memory,
                themes=themes,
                reference=reference.read_text(encoding="utf-8") if reference else "",
                max_new_tokens=max_new_tokens,
            )
        show(way, summary)
        score = "-" if summary.reference is None else f"{summary.reference:.3f}"
        table.add_row(way, str(len(summary.mentions(names))), score)
    console.print()
    console.print(table)


def show(way: str, summary: Summary) -> None:
    """Print what was written, and under each note the two passages that it rests on most."""
    console.print(f"\n{way}", style="bold")
    for note in summary.notes:
        console.print(f"- {note.theme}: {note.text}")
        for share, text in note.passages[:2]:
            console.print(f"    {share:5.1%} {text}", style="dim")
    console.print(f"Summary: {summary.text}")


if __name__ == "__main__":
    typer.run(main)
