"""The code on a page of Markdown, block by block, as a reader meets it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import attrs
from markdown_it import MarkdownIt

ROOT: Final = Path(__file__).parents[1]

PAGES: Final = sorted(
    [
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").rglob("README.md"),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    ]
)
"""Every page whose code is run."""

NOT_RUN: Final = "Not run: "
"""How the title of a block begins that the tests leave out; why comes after it."""


@attrs.frozen(kw_only=True)
class Block:
    """A block of code.

    Attributes:
        page: where it stands.
        line: its first line, from 1.
        fence: what it stands between; empty if it is indented.
        language: what stands behind the fence, if anything does.
        title: the title that readers see above it, if it has one.
        text: the code.
    """

    page: Path
    line: int
    fence: str
    language: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}, line {self.line}"


def blocks(page: Path) -> list[Block]:
    """Return all blocks of a page, fenced or indented, in order."""
    found = []
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block") and token.map is not None:
            language, _, rest = token.info.strip().partition(" ")
            title = re.search(r'title="([^"]*)"', rest)
            found.append(
                Block(
                    page=page,
                    line=token.map[0] + (2 if token.type == "fence" else 1),
                    fence=token.markup,
                    language=language,
                    title=title[1] if title else "",
                    text=token.content,
                )
            )
    return found
