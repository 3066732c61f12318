"""Collects what the tests of the oracles find; ``--family-table`` writes it into the documentation."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from family_table import PAGE, TABLES, Finding, updated

_findings = pytest.StashKey[list[Finding]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--family-table", action="store_true", help=f"write what the oracles find into {PAGE.name}")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "oracle(name, table='families'): which cell of a family table a test is for")
    config.stash[_findings] = []
    if config.getoption("family_table") and config.getoption("numprocesses", None):
        raise pytest.UsageError("--family-table writes what one process has found: leave out -n")


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
                row=tuple(parameters[each] for each in TABLES[name].parameters),
                oracle=mark.args[0],
                dtype=parameters["dtype"],
                passed=report.passed,
            )
        )
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not session.config.getoption("family_table"):
        return
    findings, page = session.config.stash[_findings], PAGE.read_text(encoding="utf-8")
    for name in TABLES:
        page = updated(page, name, [finding for finding in findings if finding.table == name])
    PAGE.write_text(page, encoding="utf-8")
