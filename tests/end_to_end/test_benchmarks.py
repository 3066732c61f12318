"""Benchmarks run, at their smallest, so that they do not rot."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from tiny_models import random_tokens, tiny_model

import memcore
from memcore.demo.text import language_reference
from memcore.evaluation.record import Record

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A function that imports a benchmark."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_backends_are_compared_with_their_libraries(tmp_path: Path) -> None:
    for module in ("faiss", "hnswlib", "lmdb"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    printed = run("backends.py", "--quick", "--checked", "--json", str(tmp_path / "backends.json"))
    results: dict[str, Any] = json.loads((tmp_path / "backends.json").read_text())["results"]
    assert not any("error" in cell for cell in results.values()), results
    for backend in ("exact", "hnswlib", "faiss flat", "faiss ivf", "faiss hnsw", "lmdb"):
        assert backend in printed


def test_results_with_other_settings_are_not_written_over(tmp_path: Path) -> None:
    file = tmp_path / "backends.json"
    Record(file, "backends", {"clock": "cpu"}).add("exact, 600, 32", {})
    before = file.read_bytes()
    command = [sys.executable, str(BENCHMARKS / "backends.py"), "--quick", "--way", "exact", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "clock = 'cpu', not 'wall'" in " ".join(done.stderr.split())
    assert file.read_bytes() == before


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
    assert "20 to 23 chunks in the bank" in printed


def test_each_round_of_observing_begins_with_as_many_chunks(
    module: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    observing, held = module("observing"), []
    timed = observing.timed

    def noting(call: Any) -> float:
        (bank,) = call.__defaults__
        held.append(bank.count(observing.SPACE))
        return float(timed(call))

    monkeypatch.setattr(observing, "timed", noting)
    observing.calls(5, rounds=3, per_round=2)
    assert held == ([5, 6] * 3 + [6, 7] * 3) * 3


def test_embedders_are_compared_and_what_the_results_depend_on_is_kept(
    module: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file, given = tmp_path / "embedders.json", {"tokens": 1500, "window": 128, "documents": 1, "layers": 1, "trials": 0}
    model = module("tiny").save_tiny_model(tmp_path / "tiny-model")
    embedders = module("embedders")
    monkeypatch.setattr(embedders, "language_reference", lambda: language_reference()[:4000])
    embedders.main(model=model, dtype="float32", json_file=file, **given)
    record = json.loads(file.read_text(encoding="utf-8"))
    assert {name: record["settings"][name] for name in (*given, "dtype")} == {**given, "dtype": "float32"}
    assert record["results"]["exact scores of all chunks"]["recall"] > record["results"]["mean key"]["recall"]


def test_long_readings_search_an_index_at_any_size(module: Callable[[str], Any], tmp_path: Path) -> None:
    cells, sizes = module("long_cell"), {"tokens": 1, "seed": 0, "first": 1, "stretch": 1, "decode": 1, "seconds": 1.0}

    def options(way: str, **config: Any) -> dict[str, Any]:
        what = {"way": way, "config": config, "options": module("long").OPTIONS, "folder": tmp_path}
        cell = cells.Cell(**what, **sizes, model="", dtype="", files=[], depths=[])
        return dict(cells.config_of(cell).backend_options)

    assert options("memory:faiss") == options("memory:hnswlib") == {"exact_below": 0}
    assert options("memory:exact") == {}
    assert options("memory", backend="faiss", backend_options={"exact_below": 9}) == {"exact_below": 9}
    assert options("memory:lmdb") == {"path": str(tmp_path / "memory")}


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


def test_a_way_that_runs_out_of_memory_says_so_and_any_other_failure_ends_it(
    module: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, model = module("gpu"), tiny_model("llama")
    assert gpu.memories(torch.device("cuda"), "")["memory in RAM, faiss on cuda"]["backend_options"]["exact_below"] == 0

    def failing(error: Exception) -> Any:
        def fail(*_: Any) -> None:
            raise error

        monkeypatch.setattr(gpu, "prefill", fail)
        return gpu.measure(model, random_tokens(1, 20, seed=0), "memory in RAM, faiss", {}, repeats=1, steps=1)

    said = "Error: 'err == cudaSuccess' failed: StandardGpuResources: alloc fail type IVFLists dev 0 space Device"
    for error in (
        RuntimeError(f"{said}\nat a line"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        memcore.BackendError("cannot keep chunks on device 'cuda': CUDA error: out of memory"),
    ):
        assert failing(error) == {"error": f"out of memory: {str(error).splitlines()[0]}"}
        assert not hasattr(model, "memory")
    with pytest.raises(RuntimeError, match="something else"):
        failing(RuntimeError("something else"))
    assert not hasattr(model, "memory")


def test_memory_of_a_gpu_that_torch_knows_nothing_of_is_measured(
    module: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, own = 300, 200
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: own)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000 - taken, 1000))
    with module("outside_torch").OutsideTorch(torch.device("cuda")) as others:
        own = 650
        taken = 800
    assert others.peak == 50


def test_texts_of_one_name_are_not_taken_for_one(module: Callable[[str], Any], tmp_path: Path) -> None:
    files = [tmp_path / name / "text.txt" for name in ("one", "two")]
    for file in files:
        file.parent.mkdir()
        file.write_text(file.parent.name, encoding="utf-8")
    with pytest.raises(typer.BadParameter, match="two files have the same name"):
        module("ablations").main(file=files)


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
    settings = json.loads((tmp_path / "ablations.json").read_text(encoding="utf-8"))["settings"]
    assert list(settings["texts"]) == ["text.txt"]
    assert settings["passkey_texts"].keys() == {"number", "depths", "text"}
