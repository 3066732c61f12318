"""``memcore serve``: sessions on a local page, and for programs that speak OpenAI's language."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Annotated

import typer

from memcore.cli.output import JsonOption, console, errors, loading, notes, print_json
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

HostOption = Annotated[
    str, typer.Option(help="Where to listen: 127.0.0.1 is for this machine only; any other lets others in.")
]
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
    with claimed(host, port, token) as listener:
        with loading(model):
            from memcore.adapter import unwrap, wrap
            from memcore.model_source import load_model, title_of
            from memcore.serving.served_model import ServedModel
            from memcore.serving.tokenizers import Tokenizers
            from memcore.session_contents import SessionContents

            loaded, tokenizer = load_model(model, device=device, dtype=dtype)
            wrap(loaded, memory, tokenizer=tokenizer)
        try:
            served = ServedModel(loaded, tokenizer, title_of(model))
            contents = SessionContents(served.memory.sessions, Tokenizers(tokenizer))
            shown = str(memory.backend_options.get("path", path))
            listen(contents, served, listener, path=shown, host=host, token=token, names=names or [], as_json=as_json)
        finally:
            unwrap(loaded)


def claimed(host: str, port: int, token: str) -> socket.socket:
    """Return a socket that listens as asked: what stands in the way of it is found before a model is loaded.

    Raises:
        MissingDependencyError: a package is missing.
        ConfigError: nothing can listen there, or must not without a token that others cannot guess.
    """
    try:
        import uvicorn  # noqa: F401

        from memcore.serving.guard import check_token, is_loopback
    except ImportError as error:
        raise MissingDependencyError('serving needs starlette and uvicorn: pip install "memcore-llm[serve]"') from error
    if token:
        check_token(token)
    if not is_loopback(host):
        if not token:
            raise ConfigError(
                f"--host {host} lets other machines in: choose what they must know with --token or MEMCORE_TOKEN"
            )
        errors.print(
            f"warning: other machines can reach {host}, and what is sent, the token too, is not encrypted",
            style="yellow",
            soft_wrap=True,
        )
    with notes.status("Loading torch and transformers ..."):
        from memcore.serving.run import listening

    return listening(host, port)


def listen(
    contents: SessionContents,
    served: ServedModel | None,
    listener: socket.socket,
    *,
    path: str,
    host: str,
    token: str,
    names: list[str],
    as_json: bool = False,
) -> None:
    """Serve until Ctrl-C, and say where."""
    from memcore.serving.app import Application
    from memcore.serving.guard import new_token
    from memcore.serving.run import address
    from memcore.serving.run import serve as run

    token = token or new_token()
    where = address(host, listener, token)
    if as_json:
        print_json({"address": where, "path": path})
    else:
        console.print(where, soft_wrap=True)
    notes.print("Open this address; Ctrl-C ends it.", style="dim")
    run(Application(contents, served, token=token, path=path, host=host, names=names), listener)
