"""``memcore ingest``: read texts into a named session, to be asked later."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memcore.cli.output import console, errors, print_json, quiet_transformers, reading_progress
from memcore.cli.settings import (
    BackendOption,
    ConfigOption,
    DeviceOption,
    DtypeOption,
    PathOption,
    SetOption,
    TopKOption,
    WindowOption,
    memory_config,
)
from memcore.errors import ConfigError


def ingest(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id or folder of a decoder model.")],
    session: Annotated[str, typer.Option(help="Name of the session.")],
    file: Annotated[list[Path], typer.Option(help="A text, UTF-8; may be repeated, then read one after the other.")],
    path: PathOption = "",
    backend: BackendOption = None,
    config: ConfigOption = "",
    window: WindowOption = None,
    top_k: TopKOption = None,
    settings: SetOption = None,
    device: DeviceOption = "",
    dtype: DtypeOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Read texts into a named session on disk.

    `memcore ask MODEL --session NAME --path FOLDER --question ...` answers from it, as often as you like. If this is
    interrupted, the same command goes on where it stopped.
    """
    memory = memory_config(config, settings, path=path, backend=backend, window=window, top_k=top_k)
    if not _outlives(memory.backend):
        raise ConfigError(f"backend {memory.backend!r} forgets everything when this command ends; give --path FOLDER")
    with errors.status("Loading the model ..."):
        from memcore.adapter import unwrap, wrap
        from memcore.options import unstructure
        from memcore.reader import load_model
        from memcore.session import Session

        quiet_transformers()
        loaded, tokenizer = load_model(model, device=device, dtype=dtype)
        wrap(loaded, memory)
    opened = Session(loaded, session, tokenizer)
    before = opened.tokens
    with reading_progress() as start:
        for each in file:
            bar = start(each.name, None)
            opened.ingest(each, progress=bar)
    if as_json:
        print_json(unstructure(opened.info))
    else:
        console.print(f"session {session!r} has read {opened.tokens:,} tokens, {opened.tokens - before:,} of them now")
    unwrap(loaded)


def _outlives(backend: str) -> bool:
    from memcore.backend import PersistentBackend
    from memcore.plugins import registry

    return issubclass(registry().load_component("backends", backend), PersistentBackend)
