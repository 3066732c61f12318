"""``memcore inspect``: what is in a memory on disk, on a local page or in a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memcore.cli.memory import Backend, Folder, opened
from memcore.cli.output import JsonOption, console, notes, print_json, quiet_transformers
from memcore.cli.serve import HostOption, NamesOption, PortOption, TokenOption, claimed, listen

if TYPE_CHECKING:
    from memcore.session_contents import SessionContents


def inspect(
    path: Folder,
    session: Annotated[str, typer.Argument(metavar="[SESSION]", help="One session; all of them if not given.")] = "",
    html: Annotated[Path | None, typer.Option(help="Write a report to this file, and serve nothing.")] = None,
    tokenizer: Annotated[
        str, typer.Option(help="Hub id or folder of the tokenizer; that of the session's model if not given.")
    ] = "",
    backend: Backend = "lmdb",
    host: HostOption = "127.0.0.1",
    port: PortOption = 8321,
    token: TokenOption = "",
    names: NamesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the sessions in a memory: their text, passage by passage, and what came back how often. Loads no model.

    Without --html this is the page of `memcore serve`, where nothing can be asked. `memcore ask --html` makes a report
    of questions and answers.
    """
    if html is None:
        with claimed(host, port, token) as listener, _contents(path, backend, session, tokenizer) as contents:
            listen(contents, None, listener, path=path, host=host, token=token, names=names or [], as_json=as_json)
        return
    with _contents(path, backend, session, tokenizer) as contents:
        _write(contents, html, path)
    if as_json:
        print_json({"path": path, "written": str(html)})
    else:
        console.print(f"written to {html}", soft_wrap=True)


@contextmanager
def _contents(path: str, backend: str, session: str, tokenizer: str) -> Iterator[SessionContents]:
    """Open a memory, and yield what is in it."""
    with opened(path, backend) as (_, sessions):
        with notes.status("Reading ..."):
            from memcore.serving.tokenizers import Tokenizers
            from memcore.session_contents import SessionContents

            quiet_transformers()
            contents = SessionContents(sessions, Tokenizers(tokenizer), only=session or None)
        yield contents


def _write(contents: SessionContents, html: Path, path: str) -> None:
    from memcore.serving.report import ReportedSession, write_report

    reported = [
        ReportedSession(session=contents.session(each["name"]), pieces=contents.text(each["name"]))
        for each in contents.summaries()
    ]
    write_report(html, reported, model=None, memory=path)
