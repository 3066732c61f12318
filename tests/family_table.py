"""The tables of families in the documentation, made from what the tests of the oracles found."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import attrs

PAGE = Path(__file__).parent.parent / "docs" / "families.md"


@attrs.frozen(kw_only=True)
class Table:
    """What a table has in its columns.

    Attributes:
        parameters: of the tests, by name: what says which row a finding belongs to.
        heads: of these columns.
        oracles: heads of the others, the names of the tests' marks.
    """

    parameters: tuple[str, ...]
    heads: tuple[str, ...]
    oracles: tuple[str, ...]


TABLES = {
    "families": Table(
        parameters=("family", "attention"),
        heads=("model type", "attention"),
        oracles=("identity", "full recall", "causality", "rotation", "effect", "unwrap"),
    ),
    "scalings": Table(
        parameters=("rope", "attention"),
        heads=("RoPE type", "attention"),
        oracles=("identity", "full recall", "causality", "rotation"),
    ),
}


@attrs.frozen(kw_only=True)
class Finding:
    """What one test found.

    Attributes:
        table: a name in ``TABLES``.
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


def rows(page: str, name: str) -> dict[tuple[str, ...], list[str]]:
    """Return the rows of a page's table: cells by what was tested."""
    count = len(TABLES[name].heads)
    lines = [line for line in _between(page, name)[1].splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {tuple(cell.strip("`") for cell in each[:count]): each[count:] for each in cells}


def updated(page: str, name: str, findings: Iterable[Finding]) -> str:
    """Return a page with a table that has the rows of these findings; other rows stay.

    A cell names the dtypes in which all tests passed, and those in which one failed.
    """
    found: dict[tuple[str, ...], dict[str, dict[str, bool]]] = {}
    for finding in findings:
        cell = found.setdefault(finding.row, {}).setdefault(finding.oracle, {})
        cell[finding.dtype] = cell.get(finding.dtype, True) and finding.passed
    shape, before_and_after = TABLES[name], _between(page, name)
    content = rows(page, name)
    for row, cells in found.items():
        content[row] = [_cell(cells.get(oracle, {})) for oracle in shape.oracles]
    lines = [(*shape.heads, *shape.oracles), ["---"] * len(shape.heads + shape.oracles)]
    lines += [(*(f"`{part}`" for part in row), *cells) for row, cells in sorted(content.items())]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{before_and_after[0]}\n\n{table}\n\n{before_and_after[2]}"


def _cell(found: dict[str, bool]) -> str:
    passed = [dtype for dtype, good in found.items() if good]
    failed = [f"**{dtype} fails**" for dtype, good in found.items() if not good]
    return ", ".join(passed + failed) or "not tested"


def _between(page: str, name: str) -> tuple[str, str, str]:
    """Divide a page into what is before, in and after a table; its marks are in the first and last part.

    Raises:
        ValueError: the page has no such table.
    """
    begin, end = f"<!-- table {name}: made by `make families` -->", f"<!-- end of table {name} -->"
    if begin not in page or end not in page:
        raise ValueError(f"the page has no table {name!r}")
    before, rest = page.split(begin)
    content, after = rest.split(end)
    return before + begin, content, end + after
