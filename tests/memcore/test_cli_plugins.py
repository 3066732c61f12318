"""``memcore plugins --check``: every component is loaded, and what is broken is named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from memcore import plugins
from memcore.cli import app

HALF = """
from memcore import Component, EvictionPolicy, hookimpl

class Half(EvictionPolicy):
    pass

@hookimpl
def memcore_eviction_policies():
    return [Component(name="half", summary="chooses nothing", load=lambda: Half)]
"""


@pytest.fixture(autouse=True)
def _only_what_the_test_installs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MEMCORE_PLUGINS", "acme")
    plugins.registry.cache_clear()
    yield
    plugins.registry.cache_clear()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plugins", *arguments], env={"COLUMNS": "200"})


def component(output: str, name: str) -> Any:
    return next(each for each in json.loads(output)["components"] if each["name"] == name)


def test_all_is_well_with_what_is_built_in() -> None:
    result = run("--check", "--json")
    assert result.exit_code == 0, result.output
    assert component(result.stdout, "exact")["available"] is True


def test_a_component_that_misses_a_method_is_named_and_the_others_work(plugin_folder: Any) -> None:
    plugin_folder("acme", HALF)
    result = run("--check", "--json")
    assert result.exit_code == 1
    half = component(result.stdout, "half")
    assert half["available"] is False
    assert half["problem"] == "eviction policy 'half' of plugin 'acme': Half does not implement select"
    assert component(result.stdout, "memlong")["problem"] == ""
    assert "Half does not implement select" in run("--check").stdout


def test_nothing_is_loaded_unless_asked(plugin_folder: Any) -> None:
    plugin_folder("acme", HALF)
    result = run("--json")
    assert result.exit_code == 0
    assert component(result.stdout, "half")["problem"] == ""


def test_a_plugin_that_cannot_be_imported_fails_the_check(plugin_folder: Any) -> None:
    plugin_folder("acme", "raise RuntimeError('no such driver')")
    result = run("--check")
    assert result.exit_code == 1
    assert "no such driver" in result.output
    assert run().exit_code == 0
