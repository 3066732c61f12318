"""``memcore train`` as a user runs it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runner import run

import memcore
from memcore.training import stage as module


@pytest.fixture
def configuration(tiny_folder: str, tmp_path: Path) -> Path:
    (tmp_path / "one.txt").write_text(" ".join(f"w{n * n % 23}" for n in range(300)))
    (tmp_path / "two.txt").write_text(" ".join(f"w{(n * n + n) % 23}" for n in range(100)))
    values: dict[str, Any] = {
        "model": tiny_folder,
        "documents": [str(tmp_path / "o*.txt")],
        "evaluation": [str(tmp_path / "two.txt")],
        "output": str(tmp_path / "out"),
        "device": "cpu",
        "memory": {"window": 32, "chunk_size": 8, "top_k": 2, "memory_layer": 0, "layers": [1]},
        "data": {"segment": 40},
        "stages": [{"name": "memlong", "steps": 4, "plan": {"lora_rank": 4}}],
    }
    path = tmp_path / "training.json"
    path.write_text(json.dumps(values))
    return path


def test_it_trains_tells_the_share_and_writes_what_loads(configuration: Path, tiny_folder: str) -> None:
    result = run("train", str(configuration))
    assert result.exit_code == 0, result.output
    assert "memlong: 1,488 of 43,152 parameters train (3.45%): LoRA 1,344, norms 144" in result.stderr
    assert "memlong: loss " in result.stderr
    assert "memlong: " not in result.stdout
    assert "\r" not in result.output  # no bars where there is no terminal
    for heading in ("stage", "trained", "steps", "evaluated before"):
        assert heading in result.stdout
    out = configuration.parent / "out"
    assert {path.name for path in out.iterdir()} == {
        "1-memlong", "log.jsonl", "loss.png", "run.json", "trained.json", "trained.safetensors"
    }  # fmt: skip
    loaded: Any = memcore.load_trained(tiny_folder, out)
    assert loaded.memory.config.memory_layer == 0


def test_the_same_command_goes_on_where_it_was_interrupted(
    configuration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no training to go on with" in run("train", str(configuration), "--resume").output

    def interrupting(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(module._Steps, "on_step_end", interrupting)
        result = run("train", str(configuration))
    assert result.exit_code == 130
    assert "ending after this step, with a checkpoint; Ctrl-C again ends it now" in result.stderr
    assert "interrupted: the same command goes on" in result.stderr
    result = run("train", str(configuration), "--resume", "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    steps = [json.loads(line)["step"] for line in (configuration.parent / "out" / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert steps[-1] == 4


def test_too_little_memory_is_told_with_what_a_training_can_do_about_it(
    configuration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more")

    monkeypatch.setattr(module.Stage, "train", full)
    result = run("train", str(configuration))
    assert result.exit_code == 1
    *_, line = result.stderr.splitlines()
    assert line.startswith("error: there is not enough memory: CUDA out of memory. Tried to allocate 2 GiB; ")
    assert "a smaller segment in [data]" in line
    assert "--" not in line


def test_a_wrong_configuration_is_one_line(configuration: Path) -> None:
    values = json.loads(configuration.read_text())
    configuration.write_text(json.dumps({**values, "stages": [{"step": 4}]}))
    result = run("train", str(configuration))
    assert result.exit_code == 1
    assert "stages[0]: unknown field 'step', did you mean 'steps'?" in result.output
    assert not (configuration.parent / "out").exists()
