"""``memcore memory stats``: what the bytes of a memory on disk are, and how its chunks were used."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memcore.cli.memory import Backend, Folder, opened
from memcore.cli.output import JsonOption, console, print_json

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


def stats(
    path: Folder,
    session: Annotated[str | None, typer.Option("--session", help="Name of a session; all if not given.")] = None,
    backend: Backend = "lmdb",
    as_json: JsonOption = False,
    watch: Annotated[
        float | None, typer.Option("--watch", metavar="SECONDS", min=0.1, help="Look again, until Ctrl-C.")
    ] = None,
) -> None:
    """Show what the bytes of a memory are, and how its chunks were used; also while another process writes to it.

    With --watch and --json it prints a line of JSON each time; with --watch alone, and not on a terminal, only what it
    saw last.
    """
    from memcore.memory_statistics import memory_statistics

    with opened(path, backend) as (_, sessions):

        def look() -> dict[str, Any]:
            return {"path": path, "backend": backend, **memory_statistics(sessions, session)}

        if watch is not None:
            _watch(look, watch, None if as_json else console)
        elif as_json:
            print_json(look())
        else:
            console.print(_shown(look()))


def _watch(look: Callable[[], dict[str, Any]], seconds: float, screen: Console | None) -> None:
    """Show what there is again and again, until Ctrl-C; without a screen as lines of JSON."""
    from rich.live import Live

    try:
        if screen is None:
            while True:
                print(json.dumps(look()), flush=True)  # noqa: T201
                time.sleep(seconds)
        with Live(console=screen, auto_refresh=False) as live:
            while True:
                live.update(_shown(look()), refresh=True)
                time.sleep(seconds)
    except KeyboardInterrupt:
        return


def _shown(found: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.table import Table

    uses = found["uses"]
    facts = Table(show_header=False, box=None)
    facts.add_row(
        "chunks", f"{found['chunks']:,}" + ("" if found["tokens"] is None else f" of {found['tokens']:,} tokens")
    )
    facts.add_row("kept as", ", ".join([*found["dtypes"], *(f"compression {each}" for each in found["compression"])]))
    facts.add_row("passages", f"{uses['passages']:,}, and {uses['gone']:,} that are gone")
    facts.add_row("came back", f"{uses['retrievals']:,} times; {uses['never']:.0%} of the passages never")
    if uses["most"]:
        named = "session {session!r}, " if found["session"] is None else ""
        most = (f"{named}position {{start:,}} ({{retrievals:,}})".format(**each) for each in uses["most"])
        facts.add_row("most often", "; ".join(most))
    if found["begun_seconds"] is not None:
        begun, idle = _duration(found["begun_seconds"]), _duration(found["idle_seconds"])
        facts.add_row("age", f"begun {begun} ago, read something {idle} ago")
    if found["session"] is None:
        facts.add_row("fragmentation", f"{found['fragmentation']:.0%} of the bytes are free; `memcore memory compact`")
        if found["map_bytes"] is not None:
            facts.add_row("map", f"{_size(found['map_bytes'])} MiB before it grows")
        if found["processes"] is not None:
            facts.add_row("open in", f"{found['processes']:,} other processes")
    parts = Table("bytes", "MiB", "share")
    for name, size in found["parts"].items():
        parts.add_row(name, _size(size), f"{size / max(1, found['bytes']):.0%}")
    parts.add_row("in all", _size(found["bytes"]), "", end_section=True)
    times = Table("came back", "passages", "")
    largest = max((bar["passages"] for bar in uses["histogram"]), default=1)
    for bar in uses["histogram"]:
        label = f"{bar['from']:,}" if bar["from"] == bar["to"] else f"{bar['from']:,}–{bar['to']:,}"
        times.add_row(label, f"{bar['passages']:,}", "█" * round(30 * bar["passages"] / max(1, largest)))
    return Group(facts, parts, *([times] if uses["passages"] else []))


def _size(size: int) -> str:
    return f"{size / 2**20:,.2f}"


def _duration(seconds: float) -> str:
    """Return a length of time in its largest unit."""
    for name, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count:,} {name}{'s' if count > 1 else ''}"
    return f"{seconds:.0f} seconds"
