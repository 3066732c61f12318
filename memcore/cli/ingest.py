"""``memcore ingest``: read texts into a named session, to be asked later."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memcore.cli.failures import Interrupted
from memcore.cli.output import JsonOption, console, loading, print_json, reading_progress
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
from memcore.files import not_empty, read_text


def ingest(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id or folder of a decoder model.")],
    session: Annotated[str, typer.Option(help="Name of the session.")],
    file: Annotated[list[Path], typer.Option(help="A text, UTF-8; may be repeated, then read as one text.")],
    path: PathOption = "",
    backend: BackendOption = None,
    config: ConfigOption = "",
    window: WindowOption = None,
    top_k: TopKOption = None,
    settings: SetOption = None,
    device: DeviceOption = "",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Read texts into a named session on disk.

    `memcore ask MODEL --session NAME --path FOLDER --question ...` answers from it, as often as you like. If this is
    interrupted, the same command goes on where it stopped.
    """
    memory = memory_config(config, settings, path=path, backend=backend, window=window, top_k=top_k)
    check_on_disk(memory.backend)
    # As one text, so that reading it can be interrupted and gone on with anywhere.
    text = "\n\n".join(not_empty(read_text(each), str(each)).rstrip() for each in file)
    with loading(model):
        from memcore.adapter import unwrap, wrap
        from memcore.model_source import load_model
        from memcore.options import unstructure
        from memcore.session import Session

        loaded, tokenizer = load_model(model, device=device, dtype=dtype)
        wrap(loaded, memory, tokenizer=tokenizer)
    try:
        opened = Session(loaded, session, tokenizer)
        before = opened.tokens
        try:
            with reading_progress() as start:
                opened.ingest(text, progress=start("reading", None))
        except KeyboardInterrupt:
            raise Interrupted(
                f"session {session!r} has read {opened.tokens:,} tokens; the same command goes on from there"
            ) from None
    finally:
        unwrap(loaded)
    if as_json:
        print_json(unstructure(opened.info))
    else:
        console.print(f"session {session!r} has read {opened.tokens:,} tokens, {opened.tokens - before:,} of them now")
