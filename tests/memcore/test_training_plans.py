"""Which weights a plan trains, in every family, and that a failed plan leaves the model as it was."""

from __future__ import annotations

import re
import sys
from typing import Any

import attrs
import pytest
import torch
from tiny_models import FAMILIES, random_tokens, tiny_model

import memcore
from memcore import ConfigError, MemoryConfig, MissingDependencyError, TrainingError
from memcore.training.trainable import TrainingPlan, history, make_trainable

SMALL = MemoryConfig(window=32, chunk_size=8, sinks=4, top_k=2, query_tokens=6)
TEXT = random_tokens(1, 100, seed=150)


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def layer_of(name: str) -> int | None:
    found = re.search(r"\.(?:layers|h)\.(\d+)\.", name)
    return int(found[1]) if found else None


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("rank", [None, 4])
def test_upper_layers_their_norms_and_gates_train_in_every_family(family: str, rank: int | None) -> None:
    model = memcore.wrap(tiny_model(family), SMALL, gate=True)
    share = make_trainable(model, TrainingPlan(first_layer=1, lora_rank=rank))
    found = trainable(model)
    assert {layer_of(name) for name in found} - {None} == set(range(1, model.config.num_hidden_layers))
    behind = [name for name in found if layer_of(name) is None]
    assert len(behind) == (2 if family in ("gpt_neox", "gpt2", "phi", "opt", "starcoder2", "stablelm") else 1) or (
        family in ("cohere", "cohere2")  # norms without a bias
    )
    assert not any("embed" in name or "lm_head" in name or "wte" in name for name in found)
    assert ("LoRA" in share.parts) is (rank is not None)
    assert ("layers" in share.parts) is (rank is None)
    if rank is not None:
        whole = {name for name in found if "lora_" not in name}
        assert all("norm" in name.lower() or "ln_" in name or "memory_gate" in name for name in whole)
        assert share.parts["LoRA"] == sum(each.numel() for name, each in found.items() if "lora_" in name)
    else:
        upper = {name for name, _ in model.named_parameters() if (layer_of(name) or 0) >= 1}
        assert upper <= found.keys()


def test_the_share_is_what_trains_and_says_so() -> None:
    model = memcore.wrap(tiny_model("llama"), SMALL, gate=True)
    share = make_trainable(model, TrainingPlan(lora_rank=4))
    assert share.trained == sum(each.numel() for each in trainable(model).values())
    assert share.total == sum(each.numel() for each in model.parameters())
    # 2 layers; 48 wide; q and o 48 x 48, k and v 48 x 24; two norms a layer and one behind; 4 heads
    assert share.parts == {"LoRA": 2 * 4 * (2 * (48 + 48) + 2 * (48 + 24)), "norms": 5 * 48, "gates": 2 * 4}
    assert str(share) == "2,936 of 44,504 parameters train (6.60%): LoRA 2,688, norms 240, gates 8"


@pytest.mark.parametrize(("memory_layer", "first"), [(None, 0), (1, 2)])
def test_the_first_layer_that_trains_is_the_one_after_the_memory_layer(memory_layer: int | None, first: int) -> None:
    model = memcore.wrap(tiny_model("gemma3_text"), attrs.evolve(SMALL, memory_layer=memory_layer))
    make_trainable(model, TrainingPlan())
    assert min(layer for name in trainable(model) if (layer := layer_of(name)) is not None) == first


@pytest.mark.parametrize("left_out", ["norms", "gate"])
def test_norms_and_gates_can_stay_frozen(left_out: str) -> None:
    model = memcore.wrap(tiny_model("llama"), SMALL, gate=True)
    share = make_trainable(model, attrs.evolve(TrainingPlan(lora_rank=4), **{left_out: False}))
    assert not any(left_out[:4] in name for name in trainable(model))
    assert share.parts.keys() == {"LoRA", "norms", "gates"} - {left_out, f"{left_out}s"}


def test_lora_begins_as_nothing_and_keeps_class_and_memory() -> None:
    plain = memcore.wrap(tiny_model("llama"), SMALL)
    model = memcore.wrap(tiny_model("llama"), SMALL)
    random = torch.get_rng_state()
    for plan in (TrainingPlan(lora_rank=4), TrainingPlan(lora_rank=2, first_layer=1)):
        make_trainable(model, plan)
    assert type(model) is type(plain)
    assert torch.equal(torch.get_rng_state(), random)
    with torch.no_grad():
        assert torch.equal(model(TEXT).logits, plain(TEXT).logits)
    assert model.memory.passages()


def test_a_second_stage_adds_an_adapter_and_keeps_the_first_one_frozen_and_active() -> None:
    model = memcore.wrap(tiny_model("llama"), SMALL)
    make_trainable(model, TrainingPlan(lora_rank=4, norms=False))
    for name, each in trainable(model).items():
        torch.nn.init.normal_(each, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    with torch.no_grad():
        first = model(TEXT).logits
    share = make_trainable(model, TrainingPlan(lora_rank=2, first_layer=1, norms=False))
    assert share.parts.keys() == {"LoRA"}
    assert all("memcore_2" in name and layer_of(name) == 1 for name in trainable(model))
    with torch.no_grad():
        assert torch.equal(model(TEXT).logits, first)
    assert {"memcore_1" in name for name in history(model).names} == {True, False}


def test_seeds_give_different_adapters() -> None:
    def weights(seed: int) -> torch.Tensor:
        model = tiny_model("llama")
        make_trainable(model, TrainingPlan(lora_rank=4), seed=seed)
        return torch.cat([each.flatten() for name, each in trainable(model).items() if "lora_A" in name])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize(
    "plan", [TrainingPlan(lora_rank=4), TrainingPlan(gate=False), TrainingPlan(lora_rank=4, gate=False)]
)
def test_half_precision_weights_are_not_trained(plan: TrainingPlan) -> None:
    model = memcore.wrap(tiny_model("llama").bfloat16(), SMALL, gate=True)
    before = {name: each.requires_grad for name, each in model.named_parameters()}
    with pytest.raises(
        TrainingError, match=r"torch.bfloat16, in which small steps are lost; load the model in float32"
    ):
        make_trainable(model, plan)
    assert {name: each.requires_grad for name, each in model.named_parameters()} == before
    make_trainable(model, TrainingPlan(lora_rank=4, norms=False, gate=False))
    assert {each.dtype for each in trainable(model).values()} == {torch.float32}
    model(TEXT, labels=TEXT).loss.backward()


def test_nothing_to_train_is_said() -> None:
    model = memcore.wrap(tiny_model("llama"), SMALL)
    with pytest.raises(TrainingError, match="first_layer is 2, and the model's layers are 0 to 1"):
        make_trainable(model, TrainingPlan(first_layer=2))
    with pytest.raises(TrainingError, match="layers of Linear are not known"):
        make_trainable(torch.nn.Linear(2, 2), TrainingPlan())


def test_without_peft_lora_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    model = tiny_model("llama")
    with pytest.raises(MissingDependencyError, match=r"memcore-llm\[train\]"):
        make_trainable(model, TrainingPlan(lora_rank=4))
    assert all(each.requires_grad for each in model.parameters())
    make_trainable(model, TrainingPlan())  # whole layers need none


def test_a_scale_without_lora_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs lora_rank"):
        TrainingPlan(lora_alpha=8)
