"""Trainer and accelerate on texts longer than the window."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import random_tokens, tiny_model
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

import memcore
from memcore import MemoryConfig

accelerate = pytest.importorskip("accelerate")

SMALL = MemoryConfig(window=32, chunk_size=8, sinks=4, top_k=2, query_tokens=6, question_tokens=5, retrieve_every=3)


class Texts(Dataset[dict[str, torch.Tensor]]):
    """A few texts of different lengths, the longest three windows long."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = random_tokens(100, seed=140 + index)
        mask = torch.ones_like(ids)
        mask[90 - 20 * index :] = 0
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


class Watch(TrainerCallback):
    """Notes after each step what is left in the bank."""

    def __init__(self) -> None:
        self.left: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        gc.collect()
        self.left.append(kwargs["model"].memory.bank.nbytes())


def trainer(model: Any, folder: Path, *callbacks: TrainerCallback, **options: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        learning_rate=5e-3,
        lr_scheduler_type="constant",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=1,
        **{"max_steps": 6, "logging_steps": 1, "save_strategy": "no", **options},
    )
    texts = Texts()
    return Trainer(model, arguments, train_dataset=texts, eval_dataset=texts, callbacks=list(callbacks))


def losses(run: Trainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"bf16": True}], ids=str)
def test_the_loss_goes_down_and_nothing_is_left_after_a_step(tmp_path: Path, options: dict[str, Any]) -> None:
    watch = Watch()
    run = trainer(memcore.wrap(tiny_model("gemma3_text"), SMALL), tmp_path, watch, **options)
    run.train()
    assert min(losses(run)[-2:]) < min(losses(run)[:2])
    assert watch.left == [0] * 6


def test_checkpointing_trains_alike(tmp_path: Path) -> None:
    seen = []
    for options in ({}, {"gradient_checkpointing": True}):
        run = trainer(memcore.wrap(tiny_model("gemma3_text"), SMALL), tmp_path, max_steps=3, **options)
        run.train()
        seen.append(losses(run))
    assert seen[0] == pytest.approx(seen[1], abs=1e-4)


def test_evaluation_gives_the_loss_of_the_model_and_its_logits(tmp_path: Path) -> None:
    model = memcore.wrap(tiny_model("llama"), SMALL)
    run = trainer(model, tmp_path, prediction_loss_only=False)
    predicted: Any = run.predict(Texts())
    assert predicted.predictions.shape == (4, 100, 97)
    assert run.evaluate()["eval_loss"] == pytest.approx(predicted.metrics["test_loss"])
    gc.collect()
    assert model.memory.bank.nbytes() == 0


def test_training_resumes_from_a_checkpoint(tmp_path: Path) -> None:
    whole = memcore.wrap(tiny_model("llama"), SMALL)
    trainer(whole, tmp_path, max_steps=4, save_strategy="steps", save_steps=2).train()
    saved = tmp_path / "checkpoint-2"
    resumed: Any = memcore.from_pretrained(saved)
    assert resumed.memory.config == SMALL
    trainer(resumed, tmp_path / "again", max_steps=4).train(resume_from_checkpoint=str(saved))
    torch.testing.assert_close(dict(resumed.named_parameters()), dict(whole.named_parameters()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_prepares_trains_and_unwraps(precision: str) -> None:
    accelerate.state.AcceleratorState._reset_state(True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    plain = tiny_model("llama").train()
    model = memcore.wrap(plain, SMALL)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model, optimizer, texts = accelerator.prepare(model, optimizer, DataLoader(Texts(), batch_size=2))
    seen = []
    for _epoch in range(3):
        for batch in texts:
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            seen.append(loss.item())
    assert min(seen[-2:]) < min(seen[:2])
    inside = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    assert inside is plain
    assert not hasattr(memcore.unwrap(inside), "memory")
