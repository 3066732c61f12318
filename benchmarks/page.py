"""Tables of a documentation page that a command writes, between two marks that stay."""

from __future__ import annotations

from collections.abc import Sequence


def replace_table(page: str, name: str, table: str, *, maker: str) -> str:
    """Return a page with another table between its marks.

    Args:
        page: Markdown.
        name: of the table, as its marks say it.
        table: Markdown.
        maker: the command that makes it, as the first mark says it.

    Raises:
        ValueError: the page has no such table.
    """
    begin, end = f"<!-- table {name}: made by `{maker}` -->", f"<!-- end of table {name} -->"
    if begin not in page or end not in page:
        raise ValueError(f"the page has no table {name!r}")
    before, rest = page.split(begin)
    return f"{before}{begin}\n\n{table}\n\n{end}{rest.split(end)[1]}"


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
