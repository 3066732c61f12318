"""Whole trainings: two stages, interrupted and gone on with."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import random_tokens

import memcore
from memcore import MemoryConfig, TrainingError
from memcore.training.configuration import DataConfig, StageConfig, TrainingConfig
from memcore.training.log import TrainingLog
from memcore.training.run import train
from memcore.training.trainable import TrainingPlan

MEMORY = MemoryConfig(window=32, chunk_size=8, sinks=4, top_k=2, query_tokens=6, memory_layer=0, layers=(1,), gate=True)
WARM_UP = StageConfig(
    name="warm-up",
    plan=TrainingPlan(first_layer=0, lora_rank=4),
    steps=4,
    learning_rate=1e-2,
    save_every=2,
    log_every=2,
)
UPPER = StageConfig(
    name="upper", plan=TrainingPlan(lora_rank=4), steps=5, learning_rate=1e-2, evaluate_every=2, accumulation=2,
    bf16=True, gradient_checkpointing=True, save_every=2, log_every=1
)  # fmt: skip
TEXT = random_tokens(1, 100, seed=170)


def configuration(model: str, folder: Path) -> TrainingConfig:
    """Write two texts into a folder, and return a training of two stages on the one that measures by the other."""
    (folder / "trained.txt").write_text(" ".join(f"w{n * n % 23}" for n in range(400)))
    (folder / "held out.txt").write_text(" ".join(f"w{(n * n + n) % 23}" for n in range(100)))
    return TrainingConfig(
        model=model,
        documents=(str(folder / "trained.txt"),),
        evaluation=(str(folder / "held out.txt"),),
        output=folder / "out",
        memory=MEMORY,
        data=DataConfig(segment=40, max_tokens=360),
        stages=(WARM_UP, UPPER),
        device="cpu",
    )


@pytest.fixture
def config(tiny_folder: str, tmp_path: Path) -> TrainingConfig:
    return configuration(tiny_folder, tmp_path)


@pytest.fixture(scope="module")
def uninterrupted(tiny_folder: str, tmp_path_factory: pytest.TempPathFactory) -> TrainingConfig:
    """A training that is done, which others are compared with."""
    config = configuration(tiny_folder, tmp_path_factory.mktemp("uninterrupted"))
    assert train(config).finished
    return config


def weights(config: TrainingConfig) -> dict[str, torch.Tensor]:
    return load_file(config.output / "trained.safetensors")


def interrupt_at(tokens: int, stage: str) -> Callable[[str, int | None], Callable[[int, int], None]]:
    """Return a progress that presses Ctrl-C when so many tokens of a stage are done."""

    def start(name: str, _: int | None) -> Callable[[int, int], None]:
        def update(done: int, _: int) -> None:
            if (name, done) == (stage, tokens):
                signal.raise_signal(signal.SIGINT)

        return update

    return start


def test_two_stages_train_and_load_with_one_call(config: TrainingConfig, tiny_folder: str) -> None:
    notes: list[str] = []
    result = train(config, note=notes.append)
    assert result.finished
    first, second = result.stages
    assert (first.steps, second.steps) == (4, 5)
    assert first.before is not None
    assert second.before == pytest.approx(first.after, abs=0.01)  # in bfloat16
    assert f"upper: {second.share}" in notes
    assert second.share.parts.keys() == {"LoRA", "norms", "gates"}
    assert any("memcore_1" in name and ".layers.0." in name for name in weights(config))
    assert all(".layers.1." in name for name in weights(config) if "memcore_2" in name)

    def logits(folder: Path) -> torch.Tensor:
        with torch.no_grad():
            model: Any = memcore.load_trained(tiny_folder, folder)
            found: torch.Tensor = model(TEXT).logits
        assert model.memory.config == MEMORY
        return found

    whole, warm = logits(config.output), logits(config.output / "1-warm-up")
    assert torch.equal(logits(config.output / "2-upper" / "checkpoint-5"), whole)
    assert not torch.equal(whole, warm)
    log = TrainingLog(config.output / "log.jsonl")
    assert list(log.values("upper", "loss")) == [1, 2, 3, 4, 5]
    assert list(log.values("upper", "eval_loss")) == [0, 2, 4, 5]
    assert (config.output / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not list(config.output.rglob("model*.safetensors"))
    # What is done is not done again.
    before = (config.output / "trained.safetensors").stat().st_mtime_ns
    assert train(config) == result
    assert (config.output / "trained.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(("stage", "tokens", "steps"), [("warm-up", 80, 3), ("warm-up", 160, 4), ("upper", 80, 2)])
def test_an_interrupted_training_goes_on_as_if_nothing_had_been(
    uninterrupted: TrainingConfig, tmp_path: Path, stage: str, tokens: int, steps: int
) -> None:
    want, lines = weights(uninterrupted), (uninterrupted.output / "log.jsonl").read_text()
    again = attrs.evolve(uninterrupted, output=tmp_path / "again")
    handler = signal.getsignal(signal.SIGINT)
    notes: list[str] = []
    result = train(again, note=notes.append, progress=interrupt_at(tokens, stage))
    assert not result.finished
    assert "ending after this step, with a checkpoint; Ctrl-C again ends it now" in notes
    assert (result.stages[-1].name, result.stages[-1].steps) == (stage, steps)
    assert signal.getsignal(signal.SIGINT) is handler
    assert not (again.output / "trained.safetensors").exists()
    assert train(again).finished
    got = weights(again)
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert torch.equal(got[name], value), name
    evaluations = [
        [line for line in map(json.loads, text.splitlines()) if "eval_loss" in line]
        for text in (lines, (again.output / "log.jsonl").read_text())
    ]
    assert evaluations[0] == evaluations[1]


def test_a_second_interrupt_is_at_once_and_the_latest_whole_checkpoint_serves(
    config: TrainingConfig, tmp_path: Path
) -> None:
    one_stage = attrs.evolve(config, stages=(UPPER,))
    train(one_stage)
    want = weights(one_stage)
    again = attrs.evolve(one_stage, output=tmp_path / "again")

    def start(*_: Any) -> Callable[[int, int], None]:
        def update(done: int, _: int) -> None:
            if done == 4 * 80:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)

        return update

    with pytest.raises(KeyboardInterrupt):
        train(again, progress=start)
    folder = again.output / "1-upper"
    assert (folder / "checkpoint-2").exists()
    shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-4", dirs_exist_ok=True)
    (folder / "checkpoint-4" / "trainer_state.json").write_text("{")  # the process ended while it was written
    assert train(again).finished
    for name, value in want.items():
        assert torch.equal(weights(again)[name], value), name
    lines = map(json.loads, (again.output / "log.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5]  # the third, which was lost, once


def test_the_loss_goes_down_on_a_text_that_repeats_itself(config: TrainingConfig, tmp_path: Path) -> None:
    (tmp_path / "trained.txt").write_text("w3 w7 w1 w9 w4 w4 w8 " * 100)
    (tmp_path / "another.txt").write_text("w3 w7 w1 w9 w4 w4 w8 " * 120)
    texts = tuple(str(tmp_path / name) for name in ("trained.txt", "another.txt"))
    stage = StageConfig(plan=TrainingPlan(first_layer=0), learning_rate=3e-3, log_every=5, warmup_steps=1)
    data = DataConfig(segment=40, rows=2)
    result = train(attrs.evolve(config, documents=texts, stages=(stage,), data=data, evaluation=()))
    losses = list(TrainingLog(config.output / "log.jsonl").values("stage-1", "loss").values())
    assert losses[-1] < 0.6 * losses[0]
    (only,) = result.stages
    assert (only.before, only.after, only.loss) == (None, None, losses[-1])
    assert only.steps == 17  # of 40 tokens of each text, the shorter of which has 700


def test_another_training_is_not_written_over(config: TrainingConfig, tmp_path: Path) -> None:
    one_stage = attrs.evolve(config, stages=(attrs.evolve(WARM_UP, steps=1),), evaluation=())
    train(one_stage)
    before = weights(one_stage)
    with pytest.raises(TrainingError, match=r"stages\.0\.steps = 1, not 2"):
        train(attrs.evolve(one_stage, stages=(attrs.evolve(WARM_UP, steps=2),)))
    (tmp_path / "trained.txt").write_text("w1 w2 " * 300)
    with pytest.raises(TrainingError, match=r"texts\.[0-9a-f]{16}\.0 = 'trained\.txt', not None"):
        train(one_stage)
    (config.output / "run.json").write_text("[")
    with pytest.raises(TrainingError, match="does not say what training this is"):
        train(one_stage)
    assert weights(one_stage).keys() == before.keys()


def test_a_training_goes_on_where_it_was_moved_to(
    config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "before").mkdir()
    for name in ("trained.txt", "held out.txt"):
        (tmp_path / name).rename(tmp_path / "before" / name)
    stages = (attrs.evolve(WARM_UP, save_every=1),)
    here = attrs.evolve(config, documents=("tr*.txt",), evaluation=("h*.txt",), output=Path("out"), stages=stages)
    monkeypatch.chdir(tmp_path / "before")
    assert not train(here, progress=interrupt_at(80, "warm-up")).finished
    (tmp_path / "before").rename(tmp_path / "after")
    monkeypatch.chdir(tmp_path / "after")
    assert train(here).finished
    assert list(TrainingLog(Path("out/log.jsonl")).values("warm-up", "loss")) == [1, 2, 3, 4]


def test_texts_that_are_evaluated_on_are_never_trained_on(config: TrainingConfig) -> None:
    with pytest.raises(TrainingError, match="is trained on"):
        train(attrs.evolve(config, evaluation=config.documents))
    assert not config.output.exists()


@pytest.mark.parametrize("field", ["documents", "evaluation"])
def test_texts_that_are_too_short_are_named(config: TrainingConfig, tmp_path: Path, field: str) -> None:
    (tmp_path / "short.txt").write_text("w1 w2 w3")
    change: dict[str, Any] = {field: (str(tmp_path / "short.txt"),)}
    with pytest.raises(TrainingError, match=f"{field}: 1 documents have 0 segments of 40"):
        train(attrs.evolve(config, **change))
    one_step = attrs.evolve(WARM_UP, steps=1, save_every=1)
    assert train(attrs.evolve(config, stages=(one_step,))).finished, "the folder is another's"


def test_a_line_that_was_cut_off_is_no_harm(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path / "log.jsonl")
    for step in (1, 2, 3):
        log.add("a", step, {"loss": 1.0 / step})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"stage": "a", "st')
    again = TrainingLog(tmp_path / "log.jsonl")
    assert again.values("a", "loss") == {1: 1.0, 2: 0.5, 3: 1 / 3}
    again.rewind("a", 2)
    again.add("a", 3, {"loss": 0.25})
    assert TrainingLog(tmp_path / "log.jsonl").values("a", "loss") == {1: 1.0, 2: 0.5, 3: 0.25}
    (tmp_path / "log.jsonl").write_text("[1]\n")
    with pytest.raises(TrainingError, match="not a line"):
        TrainingLog(tmp_path / "log.jsonl")
