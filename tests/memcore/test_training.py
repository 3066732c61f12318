"""Training with a memory that is carried from segment to segment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import random_tokens, tiny_model
from torch import Tensor
from transformers import TrainingArguments

import memcore
from memcore import MemoryConfig, TrainingError
from memcore.training.memory_state import load_memory, save_memory
from memcore.training.segments import BEGINS, DocumentSegments
from memcore.training.trainable import TrainingPlan, make_trainable
from memcore.training.trainer import MemoryTrainer

SMALL = MemoryConfig(window=32, chunk_size=8, sinks=4, top_k=2, query_tokens=6)


def documents(*lengths: int) -> list[Tensor]:
    return [random_tokens(length, seed=seed) for seed, length in enumerate(lengths)]


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    options: dict[str, Any] = {
        "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "num_train_epochs": 1, "report_to": "none",
        "learning_rate": 1e-3, "save_strategy": "no", "logging_strategy": "no", "use_cpu": True, "disable_tqdm": True,
        "max_grad_norm": 0.0,
    }  # fmt: skip
    return TrainingArguments(output_dir=str(folder), **{**options, **changes})


def test_rows_of_consecutive_batches_are_consecutive_segments_of_their_own_document() -> None:
    texts = documents(100, 95, 70, 40, 33, 5)
    data = DocumentSegments(texts, rows=2, segment=16)
    steps = [[data[index] for index in range(begin, begin + 2)] for begin in range(0, len(data), 2)]
    assert len(data) % 2 == 0
    rows: list[list[Tensor]] = []
    for step in steps:
        assert bool(step[0][BEGINS]) == bool(step[1][BEGINS])
        if bool(step[0][BEGINS]):
            rows += [[], []]
        for row, segment in enumerate(step):
            assert torch.equal(segment["input_ids"], segment["labels"])
            rows[row - 2].append(segment["input_ids"])
    whole = [text.tolist() for text in texts]
    for row_segments in rows:
        ids = torch.cat(row_segments).tolist()
        assert any(ids == text[start : start + len(ids)] for text in whole for start in range(len(text)))
    assert data.tokens == sum(len(each) for row_segments in rows for each in row_segments)
    assert data.tokens >= 0.75 * sum(len(text) for text in texts)


def in_groups(texts: list[Tensor], rows: int, segment: int) -> list[list[Tensor]]:
    """Return the groups that documents are read in: the longest each time, of equals the one that came first."""
    groups, waiting = [], sorted((each for each in texts if len(each) >= segment), key=len, reverse=True)
    while len(waiting) >= rows:
        group, waiting = waiting[:rows], waiting[rows:]
        length = len(group[-1]) // segment * segment
        groups.append([each[:length] for each in group])
        rest = [each[length:] for each in group if len(each) - length >= segment]
        waiting = sorted([*waiting, *rest], key=len, reverse=True)
    return groups


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_the_longest_documents_that_are_left_are_read_together(rows: int) -> None:
    lengths = torch.randint(5, 90, (40,), generator=torch.Generator().manual_seed(rows)).tolist()
    texts = documents(*lengths)
    data = DocumentSegments(texts, rows=rows, segment=16)
    assert len(set(lengths)) < len(lengths)  # some are equals
    for mine, expected in zip(data._groups, in_groups(texts, rows, 16), strict=True):
        for one, other in zip(mine, expected, strict=True):
            assert torch.equal(one, other)


def test_a_seed_orders_the_documents_and_nothing_else() -> None:
    texts = documents(*range(40, 140, 10))
    one, other, again = (DocumentSegments(texts, rows=2, segment=16, seed=seed) for seed in (1, 2, 1))
    ids = [[data[index]["input_ids"].tolist() for index in range(len(data))] for data in (one, other, again)]
    assert ids[0] == ids[2]
    assert ids[0] != ids[1]
    assert sorted(ids[0]) == sorted(ids[1])


@pytest.mark.parametrize(("lengths", "rows"), [((15, 15), 1), ((100,), 2), ((), 1)])
def test_too_little_text_is_refused(lengths: tuple[int, ...], rows: int) -> None:
    with pytest.raises(TrainingError, match="too few to be read"):
        DocumentSegments(documents(*lengths), rows=rows, segment=16)


def test_each_step_is_a_forward_that_goes_on_with_the_memory_of_the_one_before(tmp_path: Path) -> None:
    data = DocumentSegments(documents(160, 160), rows=2, segment=40)
    model = memcore.wrap(tiny_model("gemma3_text"), SMALL)
    losses: list[float] = []

    class Noting(MemoryTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            losses.append(float(loss.detach()))
            return loss

    Noting(model, arguments(tmp_path, learning_rate=0.0), train_dataset=data).train()
    cache = model.memory.new_cache()
    expected = []
    with torch.no_grad(), model.memory.reading(question=False):
        for step in range(4):
            ids = torch.stack([data[2 * step + row]["input_ids"] for row in (0, 1)])
            expected.append(float(model(ids, labels=ids, past_key_values=cache).loss))
    assert losses == pytest.approx(expected, abs=1e-5)


def test_memory_begins_anew_with_each_document_and_is_gone_afterwards(tmp_path: Path) -> None:
    data = DocumentSegments(documents(120, 120, 80, 80), rows=2, segment=40)
    model = memcore.wrap(tiny_model("llama"), SMALL)
    sizes: list[tuple[bool, int]] = []

    class Noting(MemoryTrainer):
        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            begins = bool(inputs[BEGINS].all())
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            assert self._cache is not None
            sizes.append((begins, self._cache.get_seq_length()))
            return loss

    trainer = Noting(model, arguments(tmp_path), train_dataset=data)
    trainer.train()
    assert sizes == [(True, 40), (False, 80), (False, 120), (True, 40), (False, 80)]
    trainer._cache = None
    assert model.memory.bank.namespaces() == []


@pytest.mark.parametrize("rank", [None, 4])
def test_oracle_6_with_frozen_lower_layers_what_is_stored_does_not_drift(tmp_path: Path, rank: int | None) -> None:
    texts = documents(200, 200)
    data = DocumentSegments(texts, rows=2, segment=40)
    model = memcore.wrap(
        tiny_model("qwen3"), attrs.evolve(SMALL, memory_layer=0, layers=(0, 1), gate=True, positions="zero")
    )
    make_trainable(model, TrainingPlan(lora_rank=rank))
    gates = [model.get_decoder().layers[index].self_attn.memory_gate for index in (0, 1)]
    assert all(gate.requires_grad for gate in gates)  # that of the memory layer does not change what it stores
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = MemoryTrainer(model, arguments(tmp_path, learning_rate=1e-2), train_dataset=data)
    trainer.train()
    assert trainer._cache is not None
    stored = {
        name: model.memory.bank.fetch(name, model.memory.bank.ids(name)) for name in model.memory.bank.namespaces()
    }
    assert len(stored) == 2
    with torch.no_grad():
        cache = model.memory.new_cache()
        for part in torch.stack([text[:200] for text in texts]).split(40, dim=1):
            with model.memory.reading(question=False):
                model(part, past_key_values=cache)
    again = {name: model.memory.bank.fetch(name, model.memory.bank.ids(name)) for name in
             set(model.memory.bank.namespaces()) - set(stored)}  # fmt: skip
    assert len(again) == 2
    old, new = (sorted(each.values(), key=lambda chunks: chunks.token_ids.tolist()) for each in (stored, again))
    for one, other in zip(old, new, strict=True):
        assert len(one) > 10
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    lower = {"model.layers.0.self_attn.memory_gate"}
    assert lower <= changed
    assert any(".layers.1." in name and ("lora" in name or rank is None) for name in changed)
    assert not any(".layers.0." in name or "embed" in name for name in changed - lower)


@pytest.mark.parametrize("rank", [None, 4])
def test_frozen_layers_and_memory_get_no_gradient(tmp_path: Path, rank: int | None) -> None:
    model = memcore.wrap(tiny_model("qwen3"), attrs.evolve(SMALL, memory_layer=0, layers=(1,)))
    make_trainable(model, TrainingPlan(lora_rank=rank))
    trainer = MemoryTrainer(
        model, arguments(tmp_path), train_dataset=DocumentSegments(documents(80, 80), rows=2, segment=40)
    )
    seen: list[set[str]] = []

    def note(*_: Any) -> None:
        seen.append({name for name, parameter in model.named_parameters() if parameter.grad is not None})

    trainer.create_optimizer()
    assert trainer.optimizer is not None
    trainer.optimizer.register_step_pre_hook(note)
    trainer.train()
    assert seen
    for names in seen:
        assert any(".layers.1." in name and "norm" not in name for name in names)
        assert not any(".layers.0." in name or "embed" in name or "base_layer" in name for name in names)
    chunks = [model.memory.bank.fetch(n, model.memory.bank.ids(n)) for n in model.memory.bank.namespaces()]
    assert chunks
    assert not any(each.keys.requires_grad or each.values.requires_grad for each in chunks)


def test_training_goes_on_from_a_checkpoint_in_the_middle_of_a_document(tmp_path: Path) -> None:
    texts = documents(320, 320)

    def train(folder: Path, resume: bool = False, **changes: Any) -> dict[str, Tensor]:
        model = memcore.wrap(tiny_model("llama"), attrs.evolve(SMALL, capacity=64))
        data = DocumentSegments(texts, rows=2, segment=40)
        options = {"save_strategy": "steps", "save_steps": 3, **changes}
        trainer = MemoryTrainer(model, arguments(folder, lr_scheduler_type="constant", **options), train_dataset=data)
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3") if resume else None)
        assert trainer.state.global_step == (3 if "max_steps" in changes else 8)
        return {name: value.clone() for name, value in model.state_dict().items()}

    whole = train(tmp_path / "whole")
    train(tmp_path / "parts", max_steps=3)
    resumed = train(tmp_path / "parts", resume=True)
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


def test_lora_in_bfloat16_goes_on_from_a_checkpoint_that_holds_only_what_trains(tmp_path: Path) -> None:
    texts = documents(400, 400)
    plan = TrainingPlan(first_layer=1, lora_rank=4, lora_dropout=0.2)

    def train(folder: Path, resume: bool = False, **changes: Any) -> dict[str, Tensor]:
        model = memcore.wrap(tiny_model("qwen3"), SMALL, gate=True)
        make_trainable(model, plan)
        data = DocumentSegments(texts, rows=2, segment=40)
        options = {"save_strategy": "steps", "save_steps": 2, "bf16": True, "gradient_accumulation_steps": 2, **changes}
        trainer = MemoryTrainer(model, arguments(folder, lr_scheduler_type="constant", **options), train_dataset=data)
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2") if resume else None)
        return {name: each.detach().clone() for name, each in model.named_parameters() if each.requires_grad}

    whole = train(tmp_path / "whole")
    train(tmp_path / "parts", max_steps=2)
    resumed = train(tmp_path / "parts", resume=True)
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name
    held = load_file(tmp_path / "parts" / "checkpoint-2" / "trained.safetensors")
    assert held.keys() == whole.keys()
    assert not all(torch.equal(held[name], whole[name]) for name in whole)
    assert not list((tmp_path / "parts" / "checkpoint-2").glob("model*"))


def test_the_best_weights_can_be_the_ones_to_stay(tmp_path: Path) -> None:
    model = memcore.wrap(tiny_model("llama"), SMALL)
    make_trainable(model, TrainingPlan(first_layer=1))
    data = DocumentSegments(documents(160, 160), rows=2, segment=40)
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    options: dict[str, Any] = {**steps, **best}
    trainer = MemoryTrainer(model, arguments(tmp_path, **options), train_dataset=data, eval_dataset=data)
    trainer.train()
    assert trainer.state.global_step == 4
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")  # for the test, the worst is best
    held = load_file(tmp_path / "checkpoint-1" / "trained.safetensors")
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[name], value) for name, value in held.items())


def test_evaluation_leaves_the_memory_of_training_alone(tmp_path: Path) -> None:
    texts = documents(160, 160)
    results = []
    for evaluated in (False, True):
        model = memcore.wrap(tiny_model("llama"), SMALL)
        data = DocumentSegments(texts, rows=2, segment=40)
        options = {"eval_strategy": "steps", "eval_steps": 1} if evaluated else {}
        trainer = MemoryTrainer(model, arguments(tmp_path, **options), train_dataset=data, eval_dataset=data)
        trainer.train()
        results.append(model.state_dict())
        assert trainer.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"]
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name])


def test_a_cache_and_its_memory_are_one_file(tmp_path: Path) -> None:
    model = memcore.wrap(tiny_model("gemma3_text"), attrs.evolve(SMALL, capacity=64))
    tokens = random_tokens(2, 220, seed=9)
    with torch.no_grad():
        cache = model(tokens[:, :200], use_cache=True).past_key_values
        save_memory(cache, tmp_path / "memory.safetensors")
        other = memcore.wrap(tiny_model("gemma3_text"), attrs.evolve(SMALL, capacity=64))
        again = load_memory(other.memory, tmp_path / "memory.safetensors", torch.device("cpu"))
        for part in tokens[:, 200:].split(5, dim=1):
            one, two = (each(part, past_key_values=c).logits for each, c in ((model, cache), (other, again)))
            assert torch.equal(one, two)
    for name, twin in zip(cache.row_names, again.row_names, strict=True):
        for layer in cache.memory_layers:
            uses = [bank.usage(layer.setup.namespace(n)) for bank, n in
                    ((model.memory.bank, name), (other.memory.bank, twin))]  # fmt: skip
            assert torch.equal(uses[0].ids, uses[1].ids)
            assert torch.equal(uses[0].retrievals, uses[1].retrievals)


def test_what_cannot_be_trained_is_said(tmp_path: Path) -> None:
    data = DocumentSegments(documents(80, 80), rows=2, segment=40)
    with pytest.raises(TrainingError, match="no memory to train with"):
        MemoryTrainer(tiny_model("llama"), arguments(tmp_path), train_dataset=data)
    model = memcore.wrap(tiny_model("llama"), SMALL)
    with pytest.raises(TrainingError, match="batch size, 4; got 2 rows"):
        MemoryTrainer(model, arguments(tmp_path, per_device_train_batch_size=4), train_dataset=data)
    with pytest.raises(TrainingError, match="got list"):
        MemoryTrainer(model, arguments(tmp_path), train_dataset=[{}])
