"""Collects what the tests of the oracles find, and with ``--family-table PAGE`` writes it into the documentation."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from family_table import Finding, put, table

HEADS = {"families": ("model type", "attention"), "scalings": ("RoPE type", "attention")}
ROWS = {"families": ("family", "attention"), "scalings": ("rope", "attention")}  # the tests' parameters

_findings = pytest.StashKey[list[Finding]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--family-table", metavar="PAGE", help="write the findings of the oracles into this page")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "oracle(name, table='families'): which cell of the family table a test is for")
    config.stash[_findings] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    mark = item.get_closest_marker("oracle")
    if mark is not None and isinstance(item, pytest.Function) and (report.when == "call" or report.failed):
        parameters: dict[str, Any] = item.callspec.params
        name = mark.kwargs.get("table", "families")
        item.config.stash[_findings].append(
            Finding(
                table=name,
                row=tuple(parameters[each] for each in ROWS[name]),
                oracle=mark.args[0],
                dtype=parameters["dtype"],
                passed=report.passed,
            )
        )
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    page = session.config.getoption("family_table", default=None)
    if page is None:
        return
    findings = session.config.stash[_findings]
    for name, heads in HEADS.items():
        own = [finding for finding in findings if finding.table == name]
        if own:
            put(Path(page), name, table(own, heads))
