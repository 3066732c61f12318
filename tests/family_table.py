"""The table of families in the documentation, made from what the tests of the oracles found."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import attrs

BEGIN, END = "<!-- table {name}: made by `make families` -->", "<!-- end of table {name} -->"


@attrs.frozen(kw_only=True)
class Finding:
    """What one test found.

    Attributes:
        table: the table it belongs to.
        row: what was tested, for instance a family and an attention implementation.
        oracle: the column.
        dtype: the variant within the cell.
        passed: whether it passed.
    """

    table: str
    row: tuple[str, ...]
    oracle: str
    dtype: str
    passed: bool


def table(findings: Iterable[Finding], heads: tuple[str, ...]) -> str:
    """Return findings as a table in Markdown: a cell names the dtypes in which all tests passed, and those that failed.

    Args:
        findings: of one table.
        heads: of the columns that say what was tested.
    """
    cells: dict[tuple[str, ...], dict[str, dict[str, bool]]] = {}
    oracles: dict[str, None] = {}
    for finding in findings:
        cell = cells.setdefault(finding.row, {}).setdefault(finding.oracle, {})
        cell[finding.dtype] = cell.get(finding.dtype, True) and finding.passed
        oracles[finding.oracle] = None
    lines = [(*heads, *oracles), tuple("---" for _ in (*heads, *oracles))]
    for row, found in sorted(cells.items()):
        texts = (_cell(found.get(oracle, {})) for oracle in oracles)
        lines.append((*(f"`{part}`" for part in row), *texts))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(found: dict[str, bool]) -> str:
    passed = [dtype for dtype, good in found.items() if good]
    failed = [f"**{dtype} fails**" for dtype, good in found.items() if not good]
    return ", ".join(passed + failed) or "not tested"


def put(page: Path, name: str, content: str) -> None:
    """Replace a table of a page, between its markers.

    Raises:
        ValueError: the page has no such table.
    """
    text, begin, end = page.read_text(encoding="utf-8"), BEGIN.format(name=name), END.format(name=name)
    if begin not in text or end not in text:
        raise ValueError(f"{page} has no table {name!r}")
    before, after = text.split(begin)[0], text.split(end)[1]
    page.write_text(f"{before}{begin}\n\n{content}\n\n{end}{after}", encoding="utf-8")


def rows(page: Path, name: str) -> list[tuple[str, ...]]:
    """Return the cells of a page's table, without its heads."""
    text = page.read_text(encoding="utf-8").split(BEGIN.format(name=name))[1].split(END.format(name=name))[0]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [tuple(cell.strip().strip("`") for cell in line.strip("|").split("|")) for line in lines]
