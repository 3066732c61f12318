"""The files that the page is made of."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

FILES: Final = {
    "index.html": "text/html",
    "style.css": "text/css",
    "source.js": "text/javascript",
    "strip.js": "text/javascript",
    "session.js": "text/javascript",
    "exchange.js": "text/javascript",
    "page.js": "text/javascript",
}
"""Each file with its media type; scripts in the order in which they run."""


def asset(name: str) -> tuple[str, str]:
    """Return one of the files and its media type."""
    return files(__package__).joinpath("static", name).read_text(encoding="utf-8"), FILES[name]
