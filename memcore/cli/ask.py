"""``memcore ask``: questions about a text that is longer than the model's window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from memcore.cli.output import JsonOption, console, errors, loading, notes, print_json, reading_progress
from memcore.cli.passages import as_values, show_passages
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
from memcore.files import ENCODING, not_empty, not_utf8

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from memcore.reader import Answer
    from memcore.serving.asking import Exchange
    from memcore.serving.report import ReportedSession

    _Asked: TypeAlias = tuple[Callable[..., Answer], Callable[[Sequence[Exchange]], ReportedSession]]
    """What answers questions, and what tells of a text and the questions for a report."""


def ask(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id or folder of a decoder model.")],
    question: Annotated[list[str], typer.Option(help="What to ask; may be repeated.")],
    file: Annotated[
        typer.FileText | None, typer.Option(help="The text, UTF-8; - for standard input.", encoding=ENCODING)
    ] = None,
    session: Annotated[str, typer.Option(help="A session that `memcore ingest` has read, instead of a text.")] = "",
    path: PathOption = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    passages: Annotated[bool, typer.Option("--passages", help="Show the passages retrieved.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Show the passages that each token rests on.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write a report to this file: the text, and what each token rests on.")
    ] = None,
    window: WindowOption = None,
    top_k: TopKOption = None,
    backend: BackendOption = None,
    config: ConfigOption = "",
    settings: SetOption = None,
    device: DeviceOption = "",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
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
    with loading(model):
        from memcore.adapter import unwrap, wrap
        from memcore.model_source import load_model

        loaded, tokenizer = load_model(model, device=device, dtype=dtype)
        wrap(loaded, memory, tokenizer=tokenizer)
    try:
        answer_to, reported = (
            _from_session(loaded, tokenizer, session)
            if session
            else _from_text(loaded, tokenizer, text, "" if file is None else Path(_name(file)).name)
        )
        exchanges: list[Exchange] = []
        answers: list[dict[str, Any]] = []
        for asked in question:
            explained = explain and not as_json
            with loaded.memory.trace() if explained else nullcontext() as trace:  # type: ignore[operator, union-attr]
                if html is None and not (explain and as_json):
                    answer = answer_to(asked, max_new_tokens=max_new_tokens)
                else:
                    answer, exchange = _watched(loaded, tokenizer, answer_to, asked, max_new_tokens)
                    exchanges.append(exchange)
            if as_json:
                answers.append(_values(asked, answer, tokenizer, exchanges[-1] if explain else None))
                continue
            if len(question) > 1:
                console.print(asked, style="bold")
            console.print(answer.text.strip(), soft_wrap=True)
            if passages:
                show_passages(answer.passages, tokenizer)
            if trace is not None:
                console.print(trace.explain(tokenizer), style="dim", soft_wrap=True)
        if as_json:
            print_json({"model": model, "session": session or None, "answers": answers})
        if html is not None:
            from memcore.serving.report import write_report

            write_report(html, [reported(exchanges)], model=model, memory=path)
            notes.print(f"the report is in {html}", style="dim", soft_wrap=True)
    finally:
        unwrap(loaded)


def _values(
    question: str, answer: Answer, tokenizer: PreTrainedTokenizerBase, exchange: Exchange | None
) -> dict[str, Any]:
    """Return a question and its answer as plain values, with what each token rests on if it was taken down."""
    from memcore.options import unstructure

    return {
        "question": question,
        "answer": answer.text.strip(),
        "seconds": answer.seconds,
        "passages": as_values(answer.passages, tokenizer),
        **({} if exchange is None else {"tokens": unstructure(exchange)["tokens"]}),
    }


def _watched(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    answer_to: Callable[..., Answer],
    question: str,
    max_new_tokens: int,
) -> tuple[Answer, Exchange]:
    """Ask, and take down what each token rests on."""
    from memcore.serving.asking import watching

    with watching(model, tokenizer) as watch:
        answer = answer_to(question, max_new_tokens=max_new_tokens, stopping_criteria=watch.criteria)
    return answer, watch.exchange(question, answer)


def _name(file: typer.FileText) -> str:
    return str(getattr(file, "name", "standard input"))


def _text(file: typer.FileText) -> str:
    try:
        text = file.read()
    except UnicodeDecodeError as error:
        raise UnsupportedInputError(f"cannot read {not_utf8(_name(file), error)}") from error
    return not_empty(text, _name(file))


def _from_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, name: str) -> _Asked:
    """Read a text."""
    from memcore.prompt import closing, opening
    from memcore.reader import Reader

    reader = Reader(model, tokenizer)
    read = opening(tokenizer, text)
    with reading_progress() as start:
        reader.read(read, start("reading", read.shape[1]))
    notes.print(
        f"read {reader.tokens:,} tokens in {reader.seconds:.1f} s ({reader.tokens / reader.seconds:,.0f} tok/s)",
        style="dim",
    )

    def reported(exchanges: Sequence[Exchange]) -> ReportedSession:
        from memcore.serving.report import ReportedSession
        from memcore.session_contents import pieces_of_text, text_contents

        cache = reader.cache()
        contents = text_contents(cache, name=name, tokens=reader.tokens, model=str(model.config._name_or_path))
        config = cache.memory.config
        pieces = pieces_of_text(tokenizer, read[0], config.sinks, config.chunk_size)
        return ReportedSession(session=contents, pieces=pieces, exchanges=exchanges)

    return lambda question, **generation: reader.ask(closing(tokenizer, question), **generation), reported


def _from_session(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> _Asked:
    """Open a session."""
    from memcore.session import Session

    session = Session(model, name, tokenizer, create=False)
    if session.info.unfinished:
        left = session.info.unfinished
        errors.print(f"its last text was read up to token {left.done:,} of {left.tokens:,} only", style="yellow")

    def reported(exchanges: Sequence[Exchange]) -> ReportedSession:
        from memcore.serving.report import ReportedSession
        from memcore.session_contents import SessionContents

        memory: Any = model.memory
        contents = SessionContents(memory.sessions, lambda _: tokenizer)
        return ReportedSession(session=contents.session(name), pieces=contents.text(name), exchanges=exchanges)

    return session.ask, reported
