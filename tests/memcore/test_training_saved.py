"""Trained weights on disk: nothing but them, and back in one call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import random_tokens, tiny_model
from torch import Tensor

import memcore
from memcore import ConfigError, MemoryConfig, TrainingError
from memcore.training.saved import save_trained
from memcore.training.trainable import TrainingPlan, history, make_trainable

CONFIG = MemoryConfig(window=32, chunk_size=8, sinks=4, top_k=2, query_tokens=6, memory_layer=0, gate=True)
TEXT = random_tokens(1, 100, seed=160)
WARM_UP, UPPER = TrainingPlan(first_layer=0, lora_rank=4), TrainingPlan(lora_rank=2, lora_alpha=8)
PLANS = {
    "warm-up": (WARM_UP,),
    "LoRA": (UPPER,),
    "layers": (TrainingPlan(),),
    "LoRA after the warm-up": (WARM_UP, UPPER),
    "layers after the warm-up": (WARM_UP, TrainingPlan()),
    "LoRA after layers": (TrainingPlan(), UPPER),
}


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(TEXT).logits
    return found


def trained(family: str = "llama", plans: tuple[TrainingPlan, ...] = (UPPER,), config: MemoryConfig = CONFIG) -> Any:
    """Return a wrapped model whose every stage has changed what it trains."""
    model = memcore.wrap(tiny_model(family), config)
    generator = torch.Generator().manual_seed(7)
    for plan in plans:
        make_trainable(model, plan)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


@pytest.mark.parametrize("plans", list(PLANS.values()), ids=list(PLANS))
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_they_come_back_in_one_call_bit_for_bit(tmp_path: Path, family: str, plans: tuple[TrainingPlan, ...]) -> None:
    model = trained(family, plans)
    save_trained(model, tmp_path)
    loaded: Any = memcore.load_trained(tiny_model(family), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.memory.config == CONFIG
    assert not torch.equal(logits(model), logits(memcore.wrap(tiny_model(family), CONFIG)))


@pytest.mark.parametrize("family", ["gemma3_text", "deepseek_v3", "opt"])
def test_families_that_differ_come_back_too(tmp_path: Path, family: str) -> None:
    config = attrs.evolve(CONFIG, memory_layer=None)
    model = trained(family, (WARM_UP, TrainingPlan(first_layer=1)), config)
    save_trained(model, tmp_path)
    assert torch.equal(logits(memcore.load_trained(tiny_model(family), tmp_path)), logits(model))


@pytest.mark.parametrize("plans", list(PLANS.values()), ids=list(PLANS))
def test_only_what_was_trained_is_saved(tmp_path: Path, plans: tuple[TrainingPlan, ...]) -> None:
    model = trained(plans=plans)
    save_trained(model, tmp_path)
    held = load_file(tmp_path / "trained.safetensors")
    before = dict(memcore.wrap(tiny_model("llama"), CONFIG).named_parameters())
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        twin = before.get(name.replace(".base_layer", ""))
        changed = twin is None or not torch.equal(parameter, twin)
        assert (name in held) is changed, name
    assert "model.layers.0.self_attn.memory_gate" in held
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trained.json", "trained.safetensors"]


@pytest.mark.parametrize("plans", [(WARM_UP, UPPER), (WARM_UP, TrainingPlan()), (TrainingPlan(),)])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_merged_it_is_an_ordinary_model_that_is_saved_as_such(
    tmp_path: Path, family: str, plans: tuple[TrainingPlan, ...]
) -> None:
    model = trained(family, plans)
    save_trained(model, tmp_path / "trained")
    merged: Any = memcore.load_trained(tiny_model(family), tmp_path / "trained", merge=True)
    torch.testing.assert_close(logits(merged), logits(model), atol=1e-4, rtol=0)
    assert set(merged.state_dict()) == set(memcore.wrap(tiny_model(family), CONFIG).state_dict())
    merged.save_pretrained(tmp_path / "whole")
    again: Any = memcore.from_pretrained(tmp_path / "whole")
    assert all(torch.equal(value, merged.state_dict()[name]) for name, value in again.state_dict().items())
    torch.testing.assert_close(logits(again), logits(merged), atol=1e-5, rtol=0)
    assert again.memory.config == CONFIG
    make_trainable(again, UPPER)  # from the beginning


def test_adapters_of_others_stay_active_and_are_not_merged(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")

    def adapted() -> Any:
        torch.manual_seed(0)
        targets = ["q_proj", "gate_proj"]
        config = peft.LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
        return peft.get_peft_model(tiny_model("llama"), config).eval()

    model = memcore.wrap(adapted(), CONFIG)
    before = logits(model)
    make_trainable(model, UPPER)
    assert torch.equal(logits(model), before)
    assert not any("default" in name for name, each in model.named_parameters() if each.requires_grad)
    with torch.no_grad():
        for each in model.parameters():
            if each.requires_grad:
                each.add_(0.05)
    save_trained(model, tmp_path)
    assert torch.equal(logits(memcore.load_trained(adapted(), tmp_path)), logits(model))
    with pytest.raises(TrainingError, match="adapters that are not memcore's: default"):
        memcore.load_trained(adapted(), tmp_path, merge=True)
    with pytest.raises(TrainingError, match="trained on another model"):
        memcore.load_trained(tiny_model("llama"), tmp_path)


def test_a_name_is_loaded_first_with_arguments_for_that(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "base")
    model = memcore.wrap(memcore.unwrap(memcore.from_pretrained(tmp_path / "base")), CONFIG)
    make_trainable(model, UPPER)
    save_trained(model, tmp_path / "trained")
    assert json.loads((tmp_path / "trained" / "trained.json").read_text())["model"] == str(tmp_path / "base")
    loaded: Any = memcore.load_trained(tmp_path / "base", tmp_path / "trained", dtype="bfloat16", window=64)
    assert loaded.dtype == torch.bfloat16
    assert loaded.memory.config == attrs.evolve(CONFIG, window=64)


def test_training_in_float32_serves_the_model_in_bfloat16(tmp_path: Path) -> None:
    model = trained(plans=(TrainingPlan(), UPPER))
    save_trained(model, tmp_path)
    loaded: Any = memcore.load_trained(tiny_model("llama").bfloat16(), tmp_path)
    torch.testing.assert_close(logits(loaded).float(), logits(model), atol=0.2, rtol=0.1)


def test_a_memory_that_is_there_stays(tmp_path: Path) -> None:
    save_trained(trained(), tmp_path)
    mine = attrs.evolve(CONFIG, top_k=1)
    loaded: Any = memcore.load_trained(memcore.wrap(tiny_model("llama"), mine), tmp_path)
    assert loaded.memory.config == mine
    with pytest.raises(ConfigError, match="window: the model has a memory"):
        memcore.load_trained(memcore.wrap(tiny_model("llama"), mine), tmp_path, window=64)
    with pytest.raises(ConfigError, match="dtype: no fields of MemoryConfig"):
        memcore.load_trained(tiny_model("llama"), tmp_path, dtype="bfloat16")


def test_a_model_without_memory_gets_none(tmp_path: Path) -> None:
    model = tiny_model("llama")
    make_trainable(model, TrainingPlan(first_layer=1))
    save_trained(model, tmp_path)
    assert not hasattr(memcore.load_trained(tiny_model("llama"), tmp_path), "memory")


def test_weights_that_were_chosen_by_hand_come_back_too(tmp_path: Path) -> None:
    model = tiny_model("llama").requires_grad_(False)
    model.lm_head.requires_grad_(True)
    torch.nn.init.ones_(model.lm_head.weight)
    save_trained(model, tmp_path)
    assert list(load_file(tmp_path / "trained.safetensors")) == ["lm_head.weight"]
    assert torch.equal(logits(memcore.load_trained(tiny_model("llama"), tmp_path)), logits(model))


def test_another_model_is_refused_and_stays_as_it_was(tmp_path: Path) -> None:
    save_trained(trained(), tmp_path)
    for other in (tiny_model("llama", seed=1), tiny_model("llama", num_hidden_layers=3), tiny_model("qwen2")):
        names = set(other.state_dict())
        with pytest.raises(TrainingError, match="trained on another model, without a name"):
            memcore.load_trained(other, tmp_path)
        assert not hasattr(other, "memory")
        assert set(other.state_dict()) == names


def test_a_model_that_was_trained_is_refused(tmp_path: Path) -> None:
    model = trained()
    save_trained(model, tmp_path)
    with pytest.raises(TrainingError, match="trained already"):
        memcore.load_trained(model, tmp_path)
    assert history(model).plans == (UPPER,)


def test_what_is_missing_or_does_not_fit_is_said(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no trained weights, which are trained\.safetensors and trained\.json"):
        memcore.load_trained(tiny_model("llama"), tmp_path)
    save_trained(trained(), tmp_path)
    weights, description = tmp_path / "trained.safetensors", tmp_path / "trained.json"
    held, said = load_file(weights), json.loads(description.read_text())
    gone = "model.layers.1.self_attn.q_proj.lora_A.memcore_1.weight"
    save_file({name: value for name, value in held.items() if name != gone}, weights)
    with pytest.raises(TrainingError, match=f"{gone} is missing"):
        memcore.load_trained(tiny_model("llama"), tmp_path)
    save_file(held, weights)
    for change, message in (
        ({"format": 2}, "has format 2, and this version of memcore reads 1"),
        ({"plans": [{"lora_rank": 3}]}, r"lora_A.memcore_1.weight is \[2, 48\], in the model \[3, 48\]"),
        ({"plans": [{"lora_rnak": 3}]}, r"cannot be read: plans\[0\]: unknown field 'lora_rnak', did you mean"),
        ({"memory": {"window": 0}}, "cannot be read"),
    ):
        description.write_text(json.dumps({**said, **change}))
        with pytest.raises(TrainingError, match=message):
            memcore.load_trained(tiny_model("llama"), tmp_path)
    description.write_text("{")
    with pytest.raises(TrainingError, match="cannot be read"):
        memcore.load_trained(tiny_model("llama"), tmp_path)
    description.write_text(json.dumps(said))
    weights.write_bytes(b"no weights")
    with pytest.raises(TrainingError, match="cannot be read"):
        memcore.load_trained(tiny_model("llama"), tmp_path)
