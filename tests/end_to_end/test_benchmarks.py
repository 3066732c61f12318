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
    printed = run("backends.py", "--quick", "--checked", "--json", str(tmp_path / "backends.json"))
    results: dict[str, Any] = json.loads((tmp_path / "backends.json").read_text())["results"]
    assert not any("error" in cell for cell in results.values()), results
    for backend in ("exact", "hnswlib", "faiss flat", "faiss ivf", "faiss hnsw", "lmdb"):
        assert backend in printed


def test_eviction_policies_are_compared(tmp_path: Path) -> None:
    printed = run("eviction.py", "--quick", "--json", str(tmp_path / "eviction.json"))
    assert json.loads((tmp_path / "eviction.json").read_text())["results"]
    for policy in ("memlong", "fifo", "lru", "lfu"):
        assert policy in printed


def small(script: str, folder: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    """Run a benchmark's small setting, and return what it printed and its results."""
    name = script.removesuffix(".py")
    printed = run(script, "--small", "--output", str(folder), *arguments)
    record = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    assert {"cpu", "cores", "torch", "transformers", "memcore"} <= set(record["machine"])
    assert "'transformers'" in printed, "machine and versions are printed"
    results: dict[str, Any] = record["results"]
    assert not any("error" in result for result in results.values()), results
    return printed, results


def test_what_observing_costs_is_measured(tmp_path: Path) -> None:
    printed = run("observing.py", "--quick", "--json", str(tmp_path / "observing.json"))
    results = json.loads((tmp_path / "observing.json").read_text())["results"]
    assert all(time > 0 for way in results["retrieve"].values() for time in way)
    assert "nobody watches" in printed


def test_a_long_reading_on_disk_goes_on_where_it_stopped(tmp_path: Path) -> None:
    pytest.importorskip("lmdb", reason="lmdb is not installed")
    way, *once = ["memory:lmdb", "--way", "memory:lmdb"]
    printed, stopped = small("long.py", tmp_path, *once, "--hours", "0")
    assert "(stopped)" in printed
    before = stopped[f"{way} / 3000"]["checkpoints"]
    printed, results = small("long.py", tmp_path, *once, "--way", "full", "--way", "offloaded")
    assert "offloaded is left out" in printed
    assert "MiB" in printed
    after = results[f"{way} / 3000"]["checkpoints"]
    assert list(after) == list(results["full / 3000"]["checkpoints"]) == ["452", "964", "1988", "3000"]
    assert list(before) == ["452"]
    assert before["452"] == after["452"], "it was read only once"
    assert after["3000"]["disk"] > after["452"]["disk"]
    assert [key["depth"] for key in results[f"{way} / 3000"]["keys"]] == [0.25, 0.75]
    assert (tmp_path / "long-3000.png").exists()
    assert not (tmp_path / "memory-lmdb-3000").exists(), "what a finished reading kept is gone"


def test_peers_are_compared(tmp_path: Path) -> None:
    ways = ["quantised:fp8", "infllm", "rag", "kvpress:SnapKVPress:0.5"]
    options = [option for way in ways for option in ("--way", way)]
    printed, results = small("peers.py", tmp_path, *options, "--other-python", str(tmp_path / "none"))
    assert "kvpress:SnapKVPress:0.5 is left out" in printed
    assert list(results) == ways[:3]
    table = (tmp_path / "peers.md").read_text(encoding="utf-8")
    assert all(way in table for way in ways[:3])
    for result in results.values():
        assert result["peak"] >= result["bare"] > 0
        assert 50 < result["perplexity"] < 500, "of random weights: about as many as there are characters"
        assert len(result["found"]) == 1
    assert (tmp_path / "peers.png").exists()


def test_several_sequences_get_what_each_gets_alone(tmp_path: Path) -> None:
    _, results = small("sequences.py", tmp_path)
    ways = results["together"]["ways"]
    rows = len(results["together"]["lengths"])
    assert all(same == rows for way in ("one batch", "one after the other") for same in ways[way]["same"])
    assert len(results["questions"]["question"]) == 3
    assert len(results["questions"]["anew"]) == 1
    assert (tmp_path / "sequences.png").exists()


def test_what_a_gpu_is_asked_runs_without_one(tmp_path: Path) -> None:
    _, results = small("gpu.py", tmp_path)
    assert {"plain", "plain, inside the window", "wrapped, inside the window", "memory in RAM"} <= set(results)
    assert all(len(result["decode_ms"]) == 4 and result["peak"] >= 0 for result in results.values())
    assert (tmp_path / "gpu.png").exists()


def test_one_field_is_changed_at_a_time_and_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    options = ["--set", "chunk_size=8", "--set", "top_k=6", "--group"]
    _, first = small("ablations.py", tmp_path, *options, "sinks", "--variant", "sinks=0")
    measured = ("full attention", "window and sinks", "default", "sinks=0")
    assert set(first) == {f"{what} / {name}" for what in ("text.txt", "pass-keys") for name in measured}
    printed, results = small("ablations.py", tmp_path, *options, "sinks")
    assert {key: results[key] for key in first} == first
    assert all(name in printed for name in ("full attention", "sinks=16"))
    losses = {name: results[f"text.txt / {name}"]["losses"] for name in ("default", "sinks=0", "sinks=16")}
    assert len({tuple(each.values()) for each in losses.values()}) == len(losses), "each variant is read another way"
    assert len(results["pass-keys / default"]) == 2
    assert (tmp_path / "ablations.png").exists()
