"""Benchmarks run, at their smallest, so that they do not rot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_backends_are_compared_with_their_libraries(tmp_path: Path) -> None:
    for module in ("faiss", "hnswlib", "lmdb"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    printed = run("backends.py", "--quick", "--json", str(tmp_path / "backends.json"))
    results: dict[str, Any] = json.loads((tmp_path / "backends.json").read_text())["results"]
    assert not any("error" in cell for cell in results.values()), results
    for backend in ("exact", "hnswlib", "faiss flat", "faiss ivf", "faiss hnsw", "lmdb"):
        assert backend in printed


def test_eviction_policies_are_compared(tmp_path: Path) -> None:
    printed = run("eviction.py", "--quick", "--json", str(tmp_path / "eviction.json"))
    assert json.loads((tmp_path / "eviction.json").read_text())["results"]
    for policy in ("memlong", "fifo", "lru", "lfu"):
        assert policy in printed
