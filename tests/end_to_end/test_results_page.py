"""The tables of docs/results.md are what its studies wrote, and nothing else."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def test_the_page_shows_what_the_studies_found() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "results.py"), "write", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module that makes the tables, of results in a folder of the test's own."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("results")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def write(file: Path, found: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"results": found}), encoding="utf-8")


def test_approximate_indexes_are_searched_and_compared_with_exact_search(results: Any, tmp_path: Path) -> None:
    sources = results.Sources(
        first="model", second="", measured=(tmp_path / "a.txt",), trained=(), labelled=None, work=tmp_path
    )
    studies = results.studies(sources)
    assert not any("faiss" in part or "hnswlib" in part for part in studies["perplexity"])

    def measured(loss: float) -> dict[str, Any]:
        return {"losses": {"32768": loss}, "blocks": {"32768": [loss, loss]}}

    for backend in ("faiss", "hnswlib"):
        command = studies[f"perplexity-{backend}"]
        assert {f"backend={backend}", "backend_options.exact_below=0", f"memory:{backend}"} <= set(command)
        assert [command[at + 1] for at, part in enumerate(command) if part == "--context"] == ["32768"]
    write(
        tmp_path / "perplexity-faiss" / "ppl.json",
        {"a.txt / memory:exact": measured(3.0), "a.txt / memory:faiss": measured(3.1)},
    )
    write(tmp_path / "perplexity-hnswlib" / "ppl.json", {"a.txt / memory:hnswlib": measured(3.0)})
    tables = results.made()
    assert list(tables) == ["approximate"]
    assert tables["approximate"].splitlines()[2:] == [
        "| memory:exact | 20.09 |",
        "| memory:faiss | 22.20 (1.105 ± 0.000) |",
        "| memory:hnswlib | 20.09 (1.000 ± 0.000) |",
    ]


def test_sets_that_were_read_in_different_ways_share_a_table(results: Any, tmp_path: Path) -> None:
    write(tmp_path / "icl" / "icl-a.json", {f"seed {n} / memory": {"accuracy": 0.5} for n in range(2)})
    write(tmp_path / "icl" / "icl-b.json", {f"seed {n} / full": {"accuracy": 1.0} for n in range(2)})
    lines = results.made()["icl"].splitlines()
    assert [lines[0], *lines[2:]] == ["|  | memory | full |", "| a | 50.0 ± 0.0 |  |", "| b |  | 100.0 ± 0.0 |"]


def test_variants_of_the_configuration_are_compared_with_full_attention_and_the_default(
    results: Any, tmp_path: Path
) -> None:
    def measured(loss: float) -> dict[str, Any]:
        return {"losses": {"8": loss}, "blocks": {"8": [loss, loss]}, "read": 80, "seconds": 2}

    found = {
        "a.txt / full attention": measured(3.0),
        "a.txt / default": measured(3.1),
        "a.txt / top_k=4": measured(3.2),
    }
    write(tmp_path / "ablations" / "ablations.json", found)
    default, other = "| default | 1.105 ± 0.000 |  |", "| top_k=4 | 1.221 ± 0.000 | 1.105 ± 0.000 |"
    assert results.made()["ablations"].splitlines()[2:] == [default, other]
    write(tmp_path / "ablations" / "ablations.json", {**found, "pass-keys / default": [True, False]})
    assert results.made()["ablations"].splitlines()[2:] == [f"{default} 1 of 2 |", f"{other}  |"]
