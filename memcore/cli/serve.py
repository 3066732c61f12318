"""``memcore serve``: sessions on a local page, and for programs that speak OpenAI's language."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memcore.cli.output import JsonOption, console, errors, notes, print_json, quiet_transformers
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
from memcore.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    from memcore.serving.served_model import ServedModel
    from memcore.session_contents import SessionContents

HostOption = Annotated[str, typer.Option(help="Where to listen; other machines reach more than 127.0.0.1 only.")]
PortOption = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any that is free.")]
TokenOption = Annotated[
    str, typer.Option(envvar="MEMCORE_TOKEN", help="What a client must know; made up anew if not given.")
]
NamesOption = Annotated[
    list[str] | None, typer.Option("--allow-host", help="A further name of the server; may be repeated.")
]


def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id or folder of a decoder model.")],
    path: PathOption = "",
    host: HostOption = "127.0.0.1",
    port: PortOption = 8321,
    token: TokenOption = "",
    names: NamesOption = None,
    window: WindowOption = None,
    top_k: TopKOption = None,
    backend: BackendOption = None,
    config: ConfigOption = "",
    settings: SetOption = None,
    device: DeviceOption = "",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Show the sessions in a memory on a local page, and answer questions from them.

    The same address serves OpenAI's chat completions under /v1. The memory is opened for reading only.
    """
    memory = memory_config(config, settings, path=path, read_only=True, window=window, top_k=top_k, backend=backend)
    check_on_disk(memory.backend)
    check_access(host, token)
    with notes.status("Loading the model ..."):
        from memcore.adapter import unwrap, wrap
        from memcore.reader import load_model
        from memcore.serving.served_model import ServedModel
        from memcore.serving.tokenizers import Tokenizers
        from memcore.session_contents import SessionContents

        quiet_transformers()
        loaded, tokenizer = load_model(model, device=device, dtype=dtype)
        wrap(loaded, memory, tokenizer=tokenizer)
    try:
        served = ServedModel(loaded, tokenizer, Path(model).name if Path(model).exists() else model)
        contents = SessionContents(served.memory.sessions, Tokenizers(tokenizer))
        shown = str(memory.backend_options.get("path", path))
        listen(contents, served, path=shown, host=host, port=port, token=token, names=names or [], as_json=as_json)
    finally:
        unwrap(loaded)


def check_access(host: str, token: str) -> None:
    """Raise if the server cannot listen as asked, or must not."""
    try:
        from memcore.serving.guard import check_token, is_loopback
    except ImportError as error:
        raise MissingDependencyError('serving needs starlette and uvicorn: pip install "memcore-llm[serve]"') from error
    if token:
        check_token(token)
    if is_loopback(host):
        return
    if not token:
        raise ConfigError(
            f"--host {host} lets other machines in: choose what they must know with --token or MEMCORE_TOKEN"
        )
    errors.print(
        f"warning: other machines can reach {host}, and what is sent, the token too, is not encrypted",
        style="yellow",
        soft_wrap=True,
    )


def listen(
    contents: SessionContents,
    served: ServedModel | None,
    *,
    path: str,
    host: str,
    port: int,
    token: str,
    names: list[str],
    as_json: bool = False,
) -> None:
    """Serve until Ctrl-C, and say where."""
    from memcore.serving.app import Application
    from memcore.serving.guard import new_token
    from memcore.serving.run import address, listening
    from memcore.serving.run import serve as run

    token = token or new_token()
    listener = listening(host, port)
    where = address(host, listener, token)
    if as_json:
        print_json({"address": where, "path": path})
        sys.stdout.flush()  # to whom it is piped needs it before the end
    else:
        console.print(where, soft_wrap=True)
    notes.print("Open this address; Ctrl-C ends it.", style="dim")
    run(Application(contents, served, token=token, path=path, host=host, names=names), listener)
