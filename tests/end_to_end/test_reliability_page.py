"""The tests that docs/reliability.md names are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "reliability.md"

NAMED = re.compile(r"`((?:[\w/]+\.py)?)((?:::\w+)*)`")


def names_in(path: Path) -> set[str]:
    """Return the tests of a file, those of a class behind its name, and the classes."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}::{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return names


def named() -> list[tuple[str, str]]:
    """Return files and tests as the page names them; a test without a file is of the file that was named last."""
    found, file = [], ""
    for name, test in NAMED.findall(PAGE.read_text(encoding="utf-8")):
        file = name or file
        if file.rpartition("/")[2].startswith("test_") and (name or test):
            found.append((file, test.removeprefix("::")))
    return found


@pytest.mark.parametrize(("file", "test"), sorted(set(named())))
def test_what_the_page_names_is_there(file: str, test: str) -> None:
    assert (TESTS / file).is_file()
    assert not test or test in names_in(TESTS / file)


def test_the_page_names_a_test_of_every_file_of_reliability() -> None:
    left_out = {path.name for path in (TESTS / "reliability").glob("test_*.py")}
    assert left_out == {file.rpartition("/")[2] for file, _ in named() if file.startswith("reliability/")}
