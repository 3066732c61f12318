"""``memcore memory``: look into a memory on disk, check it, and clean it up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memcore.cli import completion
from memcore.cli.failures import FAILED
from memcore.cli.output import JsonOption, console, notes, print_json, reading_progress

if TYPE_CHECKING:
    from memcore.backend import Damage, PersistentBackend
    from memcore.session_store import SessionInfo, SessionStore

app = typer.Typer(no_args_is_help=True, help="Look into a memory on disk, check it, and clean it up.")

Folder = Annotated[str, typer.Argument(metavar="PATH", help="Folder of the memory.")]
Name = Annotated[str, typer.Argument(metavar="SESSION", help="Name of the session.")]
Backend = Annotated[
    str,
    typer.Option("--backend", help="The backend that wrote it.", autocompletion=completion.components("backends")),
]


@app.command("list")
def list_sessions(path: Folder, backend: Backend = "lmdb", as_json: JsonOption = False) -> None:
    """List the sessions in a memory."""
    from rich.table import Table

    from memcore.session_contents import summary

    with opened(path, backend) as (held, sessions):
        found = [summary(sessions, info) for info in sessions.infos()]
        if as_json:
            print_json({"path": path, "backend": backend, "disk_bytes": held.disk_bytes(), "sessions": found})
            return
        table = Table("session", "tokens", "chunks", "MiB", "changed", "model")
        for each in found:
            done = each["unfinished"]
            tokens = f"{each['tokens']:,}" + (f" (of a text, {done['done']:,} of {done['tokens']:,})" if done else "")
            size = f"{each['bytes'] / 2**20:,.1f}"
            table.add_row(each["name"], tokens, f"{each['chunks']:,}", size, each["changed"][:19], each["model"])
        console.print(table)
        console.print(f"{held.disk_bytes() / 2**20:,.1f} MiB on disk")


@app.command("inspect")
def inspect(path: Folder, session: Name, backend: Backend = "lmdb", as_json: JsonOption = False) -> None:
    """Show what a session holds: its layers, and the chunks that were retrieved most."""
    from rich.table import Table

    from memcore.session_contents import summary

    with opened(path, backend) as (_, sessions):
        info = sessions.info(session)
        found = summary(sessions, info)
        found["config"] = dict(info.config)
        found["layers"] = [_layer(sessions, info, layer) for layer in info.next_ids]
        if as_json:
            print_json(found)
            return
        table = Table(show_header=False, box=None)
        for name in ("name", "tokens", "chunks", "created", "changed", "model", "model_fingerprint"):
            table.add_row(name.replace("_", " "), str(found[name]))
        table.add_row("tokenizer", info.tokenizer_fingerprint or "never used")
        table.add_row("made with", ", ".join(f"{name}={value}" for name, value in info.config.items()))
        console.print(table)
        table = Table("layer", "chunks", "stored ever", "MiB", "retrievals", "retrieved most: position (times)")
        for layer in found["layers"]:
            most = ", ".join(f"{each['start']:,} ({each['retrievals']})" for each in layer["most_retrieved"])
            size = f"{layer['bytes'] / 2**20:,.1f}"
            row = (layer["layer"], f"{layer['chunks']:,}", f"{layer['stored']:,}", size, f"{layer['retrievals']:,}")
            table.add_row(*row, most)
        console.print(table)


@app.command("verify")
def verify(path: Folder, backend: Backend = "lmdb", as_json: JsonOption = False) -> None:
    """Read everything and compare it with its checksums. Exits with 1 if anything is damaged."""
    from memcore.backend import Damage
    from memcore.errors import BackendError, CorruptedError

    with reading_progress("entries") as start:
        told = start("checking", None)
        try:
            with opened(path, backend) as (held, _):
                damage = held.verify(told)
        except CorruptedError as error:  # it cannot be opened, or not by all that it takes to list sessions
            try:
                kind, options = _kind_and_options(path, backend, read_only=True)
                damage = kind.salvage(options, None, told)
            except BackendError:
                damage = []
            damage = damage or [Damage(problem=str(error))]
    _print_damage(damage, as_json)
    if not as_json:
        console.print(f"{len(damage):,} damaged" if damage else "everything is as it was written")
    if damage:
        raise typer.Exit(FAILED)


@app.command("salvage")
def salvage(
    path: Folder,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A new folder to copy to.")],
    backend: Backend = "lmdb",
    as_json: JsonOption = False,
) -> None:
    """Copy what is sound of a damaged memory to a new folder, and say what is lost. Exits with 1 if anything is."""
    from pathlib import Path

    kind, options = _kind_and_options(path, backend, read_only=True)
    with reading_progress("entries") as start:
        damage = kind.salvage(options, Path(target), start("reading", None))
    _print_damage(damage, as_json)
    if not as_json:
        lost = f"; {len(damage):,} damaged, see above" if damage else "; nothing was damaged"
        console.print(f"what is sound is in {target}{lost}", soft_wrap=True)
    if damage:
        raise typer.Exit(FAILED)


@app.command("compact")
def compact(path: Folder, backend: Backend = "lmdb", as_json: JsonOption = False) -> None:
    """Give space that is no longer used back to the file system."""
    with opened(path, backend, write=True) as (held, _), notes.status("Compacting ..."):
        before = held.disk_bytes()
        held.compact()
        after = held.disk_bytes()
    if as_json:
        print_json({"path": path, "bytes_before": before, "bytes_after": after})
        return
    console.print(f"{before / 2**20:,.1f} MiB before, {after / 2**20:,.1f} MiB after")


@app.command("copy")
def copy(
    path: Folder,
    session: Name,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Name of the copy.")],
    backend: Backend = "lmdb",
    as_json: JsonOption = False,
) -> None:
    """Copy a session under another name."""
    with opened(path, backend, write=True) as (_, sessions), notes.status("Copying ..."):
        sessions.copy(session, target)
        tokens = sessions.info(target).tokens
    if as_json:
        print_json({"path": path, "session": target, "copy_of": session, "tokens": tokens})


@app.command("drop")
def drop(
    path: Folder,
    session: Name,
    backend: Backend = "lmdb",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete a session. `memcore memory compact` then makes the file smaller."""
    with opened(path, backend, write=True) as (_, sessions):
        tokens = sessions.info(session).tokens
        if not yes:
            typer.confirm(f"Delete session {session!r} with {tokens:,} tokens?", abort=True, err=True)
        sessions.drop(session)
    if as_json:
        print_json({"path": path, "dropped": session, "tokens": tokens})


@contextmanager
def opened(path: str, backend: str, *, write: bool = False) -> Iterator[tuple[PersistentBackend, SessionStore]]:
    """Open a memory, read-only unless it is to be changed."""
    from memcore.bank import MemoryBank
    from memcore.eviction_policies import FifoEviction
    from memcore.session_store import SessionStore

    def backend_there(*, read_only: bool) -> PersistentBackend:
        kind, options = _kind_and_options(path, backend, read_only=read_only)
        return kind(options)

    if write:
        backend_there(read_only=True).close()  # a writer would make a memory where there is none
    held = backend_there(read_only=not write)
    try:
        bank = MemoryBank(held, FifoEviction(), capacity=None)
        yield held, SessionStore(bank)
        bank.close()
    finally:
        held.close()


def _kind_and_options(path: str, backend: str, *, read_only: bool) -> tuple[type[PersistentBackend], object]:
    """Return the class of a backend, and its options for what is there."""
    from pathlib import Path

    from memcore.backend import PersistentBackend
    from memcore.errors import ConfigError
    from memcore.options import structure_options
    from memcore.plugins import registry

    if not Path(path).exists():
        raise ConfigError(f"there is no memory at {path!r}")
    kind = registry().load_component("backends", backend)
    if not issubclass(kind, PersistentBackend):
        raise ConfigError(f"backend {backend!r} keeps nothing on disk")
    values: dict[str, object] = {"path": path, "read_only": read_only}
    options: object = structure_options(kind.Options, values, f"backend_options of {backend!r}")
    return kind, options


def _print_damage(damage: list[Damage], as_json: bool) -> None:
    import attrs

    if as_json:
        print_json([attrs.asdict(each) for each in damage])
    else:
        for each in damage:
            console.print(str(each), style="red", soft_wrap=True)


def _layer(sessions: SessionStore, info: SessionInfo, layer: str) -> dict[str, Any]:
    from memcore.session_contents import layer_summary

    bank = sessions.bank
    namespace = info.namespace(layer)
    usage = bank.usage(namespace)
    order = usage.retrievals.argsort(descending=True, stable=True)[:5]
    starts = bank.fetch(namespace, usage.ids[order]).starts.tolist() if len(usage) else []
    return {
        **layer_summary(bank, layer, namespace),
        "most_retrieved": [
            {"start": start, "retrievals": count}
            for start, count in zip(starts, usage.retrievals[order].tolist(), strict=True)
            if count
        ],
    }
