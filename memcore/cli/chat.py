"""``memcore chat``: a conversation that the model does not forget."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memcore.cli.failures import Interrupted
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
from memcore.files import not_empty, read_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from memcore.chat import Chat
    from memcore.reader import Answer

_HELP = "/memory shows what the memory did, /exit or Ctrl-D leaves. Ctrl-C ends a reply; twice takes the turn back."


def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id or folder of a decoder model.")],
    session: Annotated[str, typer.Option(help="A session to keep the chat in, and to go on with.")] = "",
    path: PathOption = "",
    system: Annotated[str, typer.Option(help="What the model is told before anything else.")] = "",
    file: Annotated[
        list[Path] | None, typer.Option(help="A text to talk of, UTF-8; may be repeated. Not read twice.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply.")] = 512,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 for the likeliest reply; 1 samples.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of what is sampled.")] = 0,
    window: WindowOption = None,
    top_k: TopKOption = None,
    backend: BackendOption = None,
    config: ConfigOption = "",
    settings: SetOption = None,
    device: DeviceOption = "",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Chat, with a memory of all that was said.

    With --session and --path the chat goes on where the last one ended, or in a text that `memcore ingest` has read.

    Where standard input is no terminal, each line of it is said, and the replies alone are printed. With --json too
    each line is said, and what was said and replied is printed when there is no more.
    """
    memory = memory_config(config, settings, path=path, window=window, top_k=top_k, backend=backend)
    if session:
        check_on_disk(memory.backend)
    texts = [not_empty(read_text(each), str(each)).strip() for each in file or ()]
    with loading(model):
        import torch

        from memcore.adapter import unwrap, wrap
        from memcore.chat import Chat
        from memcore.model_source import load_model

        loaded, tokenizer = load_model(model, device=device, dtype=dtype)
        wrap(loaded, memory, tokenizer=tokenizer)
    generation: dict[str, Any] = {"max_new_tokens": max_new_tokens}
    if temperature:
        torch.manual_seed(seed)
        generation |= {"do_sample": True, "temperature": temperature}
    try:
        opened = Chat(loaded, tokenizer, session or None, system=system)
        _read(opened, texts)
        if as_json:
            _say_all(opened, tokenizer, session, generation)
        else:
            _talk(opened, tokenizer, memory.window_length, generation)
    finally:
        unwrap(loaded)


@contextmanager
def interrupts_end_the_reply(chat: Chat) -> Iterator[None]:
    """Let the first Ctrl-C end the reply under way, which is kept, and the next raise KeyboardInterrupt."""
    pressed: list[bool] = []

    def handle(*_: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)
        chat.stop()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _talk(chat: Chat, tokenizer: PreTrainedTokenizerBase, window: int, generation: dict[str, Any]) -> None:
    """Say each line and print the reply."""
    interactive = sys.stdin.isatty() and console.is_terminal
    if interactive:
        known = f"It has read {chat.tokens:,} tokens so far. " if chat.tokens else ""
        notes.print(f"{known}{_HELP}", style="dim", soft_wrap=True)
    reply: Answer | None = None
    for line in _lines(interactive):
        said = line.strip()
        if said == "/exit":
            return
        if said == "/memory":
            _show_memory(chat, reply, tokenizer, window)
        elif said.startswith("/"):
            errors.print(f"there is no {said.split()[0]}. {_HELP}", style="yellow")
        elif said:
            try:
                with interrupts_end_the_reply(chat):
                    reply = chat.say(
                        said, on_text=lambda piece: console.out(piece, end="", highlight=False), **generation
                    )
            except KeyboardInterrupt:
                if not interactive:
                    raise
                errors.print("\ntaken back: that turn did not happen", style="yellow")
            else:
                console.print()


def _say_all(chat: Chat, tokenizer: PreTrainedTokenizerBase, session: str, generation: dict[str, Any]) -> None:
    """Say each line, and print all that was said and replied as JSON. A line that begins with ``/`` is said, too."""
    turns = []
    for line in sys.stdin:
        if said := line.strip():
            reply = chat.say(said, **generation)
            values = {"seconds": reply.seconds, "passages": as_values(reply.passages, tokenizer)}
            turns.append({"said": said, "reply": reply.text, **values})
    print_json({"session": session or None, "tokens": chat.tokens, "turns": turns})


def _lines(interactive: bool) -> Iterator[str]:
    """Yield what is said, until there is no more."""
    if not interactive:
        yield from sys.stdin
        return
    with suppress(ImportError):  # not every platform has it
        import readline  # noqa: F401  (lets input() edit the line)
    while True:
        try:
            yield input("> ")
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            errors.print(f"\n{_HELP}", style="dim")


def _show_memory(chat: Chat, reply: Answer | None, tokenizer: PreTrainedTokenizerBase, window: int) -> None:
    console.print(f"{chat.tokens:,} tokens were said and read. The window holds the last {window:,}.")
    if reply is None:
        console.print("There was no reply yet since the chat was opened.")
        return
    if not reply.passages:
        console.print("The last reply read none from the memory: all was still in the window.")
        return
    console.print(f"At its end the last reply read {len(reply.passages)} passages from the memory:")
    show_passages(sorted(reply.passages, key=lambda passage: passage.start), tokenizer)


def _read(chat: Chat, texts: list[str]) -> None:
    """Read those texts that the chat does not know yet."""
    for text in texts:
        if any(each["role"] == "user" and text in each["content"] for each in chat.messages):
            continue
        try:
            with reading_progress() as start:
                chat.read(text, start("reading", None))
        except KeyboardInterrupt:
            if chat.session is None:
                raise
            raise Interrupted(
                f"session {chat.session.info.name!r} has read {chat.tokens:,} tokens; "
                "the same command goes on from there"
            ) from None
