"""``memcore ask``: questions about a text that is longer than the model's window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from memcore.cli.output import console, errors, memory_config, quiet_transformers, reading_progress

if TYPE_CHECKING:
    pass


def ask(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id or folder of a decoder model.")],
    file: Annotated[typer.FileText, typer.Option(help="The text, UTF-8; - for standard input.", encoding="utf-8")],
    question: Annotated[list[str], typer.Option(help="What to ask; may be given several times.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    passages: Annotated[bool, typer.Option("--passages", help="Show the passages retrieved.")] = False,
    window: Annotated[int | None, typer.Option(help="Tokens the model attends to directly.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Chunks brought back per retrieval.")] = None,
    backend: Annotated[str | None, typer.Option(help="Where the memory is kept: see `memcore plugins`.")] = None,
    config: Annotated[str, typer.Option(help="Configuration file, .toml, .yaml or .json.")] = "",
    device: Annotated[str, typer.Option(help="Where to run, e.g. cuda; found out if not given.")] = "",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto for the checkpoint's own.")] = "auto",
) -> None:
    """Ask about a text longer than the window.

    The model reads the text once, with memory, and answers every question from there.

    A chat model is asked through its chat template. Any other goes on from the text and the question.
    """
    from memcore.errors import UnsupportedInputError

    memory = memory_config(config, window=window, top_k=top_k, backend=backend)
    try:
        text = file.read()
    except UnicodeDecodeError as error:
        raise UnsupportedInputError(f"{file.name} is not UTF-8 text: {error}") from error
    if not text.strip():
        raise UnsupportedInputError(f"{file.name} has no text in it")
    if not all(each.strip() for each in question):
        raise UnsupportedInputError("a question is empty")
    with errors.status("Loading the model ..."):
        from memcore.adapter import wrap
        from memcore.prompt import closing, opening
        from memcore.reader import Reader, load_model

        quiet_transformers()
        loaded, tokenizer = load_model(model, device=device, dtype=dtype)
        wrap(loaded, memory)
    reader = Reader(loaded, tokenizer)
    with reading_progress() as start:
        read = opening(tokenizer, text)
        reader.read(read, start("reading", read.shape[1]))
    errors.print(
        f"read {reader.tokens:,} tokens in {reader.seconds:.1f} s ({reader.tokens / reader.seconds:,.0f} tok/s)",
        style="dim",
    )
    for asked in question:
        answer = reader.ask(closing(tokenizer, asked), max_new_tokens=max_new_tokens)
        if len(question) > 1:
            console.print(asked, style="bold")
        console.print(answer.text.strip(), soft_wrap=True)
        if passages:
            for passage in answer.passages:
                excerpt = " ".join(str(tokenizer.decode(passage.token_ids.clamp_min(0))).split())
                where = f"  [{passage.start:,}, layers {', '.join(map(str, passage.layers))}]"
                console.print(f"{where} {excerpt}", style="dim", soft_wrap=True)
