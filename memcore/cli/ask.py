"""``memcore ask``: questions about a text that is longer than the model's window."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from memcore.cli.output import console, errors, quiet_transformers, reading_progress
from memcore.cli.settings import (
    BackendOption,
    ConfigOption,
    DeviceOption,
    DtypeOption,
    PathOption,
    SetOption,
    TopKOption,
    WindowOption,
    check_on_disk,
    memory_config,
)
from memcore.errors import UnsupportedInputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from memcore.reader import Answer


def ask(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id or folder of a decoder model.")],
    question: Annotated[list[str], typer.Option(help="What to ask; may be repeated.")],
    file: Annotated[
        typer.FileText | None, typer.Option(help="The text, UTF-8; - for standard input.", encoding="utf-8")
    ] = None,
    session: Annotated[str, typer.Option(help="A session that `memcore ingest` has read, instead of a text.")] = "",
    path: PathOption = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    passages: Annotated[bool, typer.Option("--passages", help="Show the passages retrieved.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Show the passages that each token rests on.")] = False,
    window: WindowOption = None,
    top_k: TopKOption = None,
    backend: BackendOption = None,
    config: ConfigOption = "",
    settings: SetOption = None,
    device: DeviceOption = "",
    dtype: DtypeOption = "auto",
) -> None:
    """Ask about a text longer than the window.

    The model reads the text once, with memory, and answers every question from there; or it answers from a session.

    A chat model is asked through its chat template. Any other goes on from the text and the question.
    """
    if (file is None) == (not session):
        raise UnsupportedInputError("give either a text, --file, or a session that was read before, --session")
    if not all(each.strip() for each in question):
        raise UnsupportedInputError("a question is empty")
    memory = memory_config(
        config, settings, path=path, read_only=bool(session), window=window, top_k=top_k, backend=backend
    )
    if session:
        check_on_disk(memory.backend)
    text = "" if file is None else _text(file)
    with errors.status("Loading the model ..."):
        from memcore.adapter import wrap
        from memcore.reader import load_model

        quiet_transformers()
        loaded, tokenizer = load_model(model, device=device, dtype=dtype)
        wrap(loaded, memory, tokenizer=tokenizer)
    answer_to = _from_session(loaded, tokenizer, session) if session else _from_text(loaded, tokenizer, text)
    for asked in question:
        with loaded.memory.trace() if explain else nullcontext() as trace:  # type: ignore[operator, union-attr]
            answer = answer_to(asked, max_new_tokens)
        if len(question) > 1:
            console.print(asked, style="bold")
        console.print(answer.text.strip(), soft_wrap=True)
        if passages:
            for passage in answer.passages:
                excerpt = " ".join(str(tokenizer.decode(passage.token_ids.clamp_min(0))).split())
                where = f"  [{passage.start:,}, layers {', '.join(map(str, passage.layers))}]"
                console.print(f"{where} {excerpt}", style="dim", soft_wrap=True)
        if trace is not None:
            console.print(trace.explain(tokenizer), style="dim", soft_wrap=True)


def _text(file: typer.FileText) -> str:
    try:
        text = file.read()
    except UnicodeDecodeError as error:
        raise UnsupportedInputError(f"{file.name} is not UTF-8 text: {error}") from error
    if not text.strip():
        raise UnsupportedInputError(f"{file.name} has no text in it")
    return text


def _from_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> Callable[[str, int], Answer]:
    """Read a text and return what answers questions about it."""
    from memcore.prompt import closing, opening
    from memcore.reader import Reader

    reader = Reader(model, tokenizer)
    read = opening(tokenizer, text)
    with reading_progress() as start:
        reader.read(read, start("reading", read.shape[1]))
    errors.print(
        f"read {reader.tokens:,} tokens in {reader.seconds:.1f} s ({reader.tokens / reader.seconds:,.0f} tok/s)",
        style="dim",
    )
    return lambda question, longest: reader.ask(closing(tokenizer, question), max_new_tokens=longest)


def _from_session(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str
) -> Callable[[str, int], Answer]:
    """Return what answers questions from a session."""
    from memcore.session import Session

    session = Session(model, name, tokenizer, create=False)
    if session.info.unfinished:
        left = session.info.unfinished
        errors.print(f"its last text was read up to token {left.done:,} of {left.tokens:,} only", style="yellow")
    return lambda question, longest: session.ask(question, max_new_tokens=longest)
