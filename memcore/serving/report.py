"""The page with its data in one file, which opens from anywhere and asks for nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import attrs

import memcore
from memcore.files import replacing
from memcore.options import unstructure
from memcore.serving.asking import Exchange
from memcore.serving.page import FILES, asset

_LINK = re.compile(r'<link rel="stylesheet" href="(?P<name>[^"]+)">')
_SCRIPT = re.compile(r'<script defer src="(?P<name>[^"]+)"></script>\n')


@attrs.frozen(kw_only=True)
class ReportedSession:
    """A session in a report.

    Attributes:
        session: what :meth:`memcore.session_contents.SessionContents.session` tells of it.
        pieces: its text, see :func:`memcore.session_contents.pieces_of_text`.
        exchanges: what was asked.
    """

    session: dict[str, Any]
    pieces: Sequence[str]
    exchanges: Sequence[Exchange] = ()


def memory_record(path: str, model: str | None, sessions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what the page is told first, by ``/api/v1/memory`` or in a report."""
    return {"memcore": memcore.__version__, "model": model, "path": path, "sessions": sessions}


def write_report(path: Path, sessions: Sequence[ReportedSession], *, model: str | None, memory: str) -> None:
    """Write a report.

    Args:
        path: of the file; what is there is replaced.
        sessions: what to show.
        model: what the model is called, None if none was asked.
        memory: the memory's path, as it is shown.

    Raises:
        WriteError: it cannot be written; what was there is as it was.
    """
    page = report(sessions, model=model, memory=memory)
    with replacing(path) as new:
        new.write_text(page, encoding="utf-8")


def report(sessions: Sequence[ReportedSession], *, model: str | None, memory: str) -> str:
    """Return a report as HTML; arguments as in :func:`write_report`."""
    data = {
        "memory": memory_record(
            memory, model, [{name: each.session[name] for name in ("name", "tokens")} for each in sessions]
        ),
        "sessions": [
            {
                "session": each.session,
                "pieces": list(each.pieces),
                "exchanges": [unstructure(exchange) for exchange in each.exchanges],
            }
            for each in sessions
        ],
    }
    page, _ = asset("index.html")
    style, _ = asset("style.css")
    scripts = [asset(name)[0] for name, kind in FILES.items() if kind == "text/javascript"]
    allowed = " ".join(map(_source, scripts))
    policy = f"default-src 'none'; script-src {allowed}; style-src {_source(style)}; img-src data:; base-uri 'none'"
    head = f'<meta http-equiv="content-security-policy" content="{escape(policy)}">\n<style>{style}</style>'
    # In a script "<" could end it, or begin a comment; as an escape it is the same text in JSON.
    written = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    body = f'<script type="application/json" id="recorded">{written}</script>\n'
    body += "".join(f"<script>{script}</script>\n" for script in scripts)
    page = _SCRIPT.sub("", _LINK.sub(lambda _: head, page))
    return page.replace("</body>", body + "</body>")


def _source(inline: str) -> str:
    """Return how a policy names what stands in the page itself."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'"
