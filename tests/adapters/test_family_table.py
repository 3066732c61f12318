"""The tables of the documentation: made as the findings say, and never behind the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from family_table import PAGE, TABLES, Finding, rows, updated
from memcore_adapters import smollm3
from memcore_adapters.plugin import FAMILIES as REGISTERED
from tiny_models import attentions

EMPTY = "Before.\n\n<!-- table families: made by `make families` -->\n<!-- end of table families -->\n\nAfter.\n"


def finding(row: tuple[str, ...], oracle: str, dtype: str, *, passed: bool = True) -> Finding:
    return Finding(table="families", row=row, oracle=oracle, dtype=dtype, passed=passed)


def test_a_cell_names_the_dtypes_that_pass_and_those_that_fail() -> None:
    row = ("llama", "sdpa")
    findings = [finding(row, "identity", "fp32"), finding(row, "identity", "bf16")]
    findings += [finding(row, "causality", "fp32"), finding(row, "causality", "fp32", passed=False)]
    page = updated(EMPTY, "families", findings)
    assert "| `llama` | `sdpa` | fp32, bf16 | not tested | **fp32 fails** | not tested |" in page
    assert page.startswith("Before.")
    assert page.endswith("After.\n")


def test_rows_that_were_not_tested_again_stay() -> None:
    page = updated(EMPTY, "families", [finding(("llama", "sdpa"), "identity", "fp32")])
    page = updated(page, "families", [finding(("gemma", "sdpa"), "identity", "fp32")])
    assert list(rows(page, "families")) == [("gemma", "sdpa"), ("llama", "sdpa")]


def test_a_page_without_the_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="no table 'families'"):
        updated("nothing", "families", [])


def test_the_page_on_adding_a_family_quotes_the_code_as_it_is() -> None:
    page = (PAGE.parent / "add-a-family.md").read_text(encoding="utf-8")
    (quoted,) = re.findall(r"```python\n(class SmolLM3Adapter.*?)```", page, flags=re.DOTALL)
    assert quoted in Path(smollm3.__file__).read_text(encoding="utf-8")
    for name in re.findall(r"`(\w+\.py)`", page):
        assert (Path(smollm3.__file__).parent / name).is_file()


def test_the_table_has_the_registered_families_and_all_of_their_attentions() -> None:
    found = rows(PAGE.read_text(encoding="utf-8"), "families")
    assert list(found) == sorted((family, attention) for family in REGISTERED for attention in attentions(family))


@pytest.mark.parametrize("name", list(TABLES))
def test_every_cell_of_the_tables_passed_in_both_dtypes(name: str) -> None:
    found = rows(PAGE.read_text(encoding="utf-8"), name)
    assert found
    assert {cell for cells in found.values() for cell in cells} == {"fp32, bf16"}
