"""What the site must have, beside what its strict build finds."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import pytest
from markdown_it import MarkdownIt
from page_blocks import PAGES, ROOT

import memcore
from memcore import MemoryConfig, errors, hookspecs

DOCS = ROOT / "docs"
REFERENCE = "\n".join(page.read_text(encoding="utf-8") for page in [*DOCS.glob("api/*.md"), DOCS / "configuration.md"])


def links(page: Path) -> list[str]:
    found = []
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        for child in token.children or []:
            found += [str(child.attrs[name]) for name in ("href", "src") if name in child.attrs]
    return found


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_public_name_is_in_the_reference() -> None:
    for name in memcore.__all__:
        if name != "__version__" and not hasattr(errors, name) and not hasattr(hookspecs, name):
            assert re.search(rf"^::: memcore\.{name}$", REFERENCE, flags=re.MULTILINE), name


def test_every_field_of_the_configuration_is_explained() -> None:
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### `(\w+)`\n\n(.+?)$", page, flags=re.MULTILINE))
    assert set(sections) == {field.name for field in attrs.fields(MemoryConfig)}
    assert all(len(text) > 30 for text in sections.values())


def test_numbers_of_the_comparison_are_measured_ones() -> None:
    """The page on other ways repeats numbers of another page, and must not keep old ones."""
    rows = re.findall(r"^\|.*\d.*\|$", (DOCS / "comparison.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    measured = (DOCS / "measurements.md").read_text(encoding="utf-8")
    numbers = re.findall(r"\d[\d,.]*(?: of \d+)?", " ".join(rows))
    assert len(numbers) > 5
    for number in numbers:
        assert re.search(rf"(?<![\d.,]){re.escape(number)}(?![\d])", measured), number


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme == "https", link
            assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc), link
            continue
        target = (page.parent / parts.path).resolve() if parts.path else page
        assert target.exists(), f"{link}: no {target}"
        if parts.fragment and target.suffix == ".md" and "api" not in target.parts:
            assert parts.fragment in anchors(target), f"{link}: {sorted(anchors(target))}"
