"""LoRA and its like, put on before or after memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from tiny_models import random_tokens, tiny_model

import memcore
from memcore import MemoryConfig

peft = pytest.importorskip("peft")

SMALL = MemoryConfig(window=32, chunk_size=8, sinks=4, top_k=2, query_tokens=6, question_tokens=5, retrieve_every=3)
EVERYTHING = attrs.evolve(SMALL, top_k=10_000, positions="original", retrieve_every=1)
TEXT = random_tokens(1, 100, seed=120)


def with_lora(model: Any) -> Any:
    """Give a model adapters that do something, the same each time."""
    torch.manual_seed(0)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    config = peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
    return peft.get_peft_model(model, config).eval()


def memory_after(config: MemoryConfig) -> Any:
    return memcore.wrap(with_lora(tiny_model("llama")), config)


def memory_before(config: MemoryConfig) -> Any:
    return with_lora(memcore.wrap(tiny_model("llama"), config))


orders = pytest.mark.parametrize("make", [memory_after, memory_before])
Make = Callable[[MemoryConfig], Any]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(TEXT).logits
    return found


@orders
def test_with_full_recall_it_is_the_adapted_model(make: Make) -> None:
    plain = with_lora(tiny_model("llama"))
    model = make(EVERYTHING)
    torch.testing.assert_close(logits(model), logits(plain), atol=1e-4, rtol=0)
    options = {"input_ids": TEXT, "max_new_tokens": 12, "do_sample": False}
    assert torch.equal(model.generate(**options), plain.generate(**options))
    assert model.memory.passages()


@orders
@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_trains_its_adapters_and_nothing_else(make: Make, checkpointing: bool) -> None:
    model = make(SMALL).train()
    if checkpointing:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    for _ in range(4):
        loss = model(TEXT, labels=TEXT).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert all(("lora" in name) == (p.grad is not None) for name, p in model.named_parameters())


@orders
def test_without_its_adapters_it_is_the_model_they_were_put_on(make: Make) -> None:
    model = make(SMALL)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(memcore.wrap(tiny_model("llama"), SMALL)))


@orders
def test_merging_keeps_the_memory(make: Make) -> None:
    model = make(SMALL)
    expected = logits(model)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, atol=1e-3, rtol=0)
    assert merged.memory.passages()
    plain = with_lora(tiny_model("llama")).merge_and_unload()
    assert torch.equal(logits(memcore.unwrap(merged)), logits(plain))


@orders
def test_saved_adapters_load_in_either_order(make: Make, tmp_path: Path) -> None:
    model = make(SMALL)
    model.save_pretrained(tmp_path)
    on_memory = peft.PeftModel.from_pretrained(memcore.wrap(tiny_model("llama"), SMALL), tmp_path)
    under_memory = memcore.wrap(peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path), SMALL)
    assert torch.equal(logits(on_memory), logits(model))
    assert torch.equal(logits(under_memory), logits(model))


@orders
@pytest.mark.parametrize("through", ["outside", "inside"])
def test_memory_can_be_taken_away_from_outside_and_inside(make: Make, through: str) -> None:
    model = make(SMALL)
    memcore.unwrap(model if through == "outside" else model.get_base_model())
    plain = with_lora(tiny_model("llama"))
    assert torch.equal(logits(model), logits(plain))
    assert not hasattr(model, "memory")
    attributes = [{name for name in vars(each) if "memcore" in name} for each in model.modules()]
    assert not any(attributes)
    with pytest.raises(memcore.NotWrappedError):
        memcore.unwrap(model)
    assert memcore.wrap(model, SMALL).memory.config == SMALL


@orders
def test_a_second_memory_is_refused_at_every_level(make: Make) -> None:
    model = make(SMALL)
    for part in (model, model.get_base_model(), model.get_base_model().base_model):
        with pytest.raises(memcore.AlreadyWrappedError):
            memcore.wrap(part, SMALL)


@orders
def test_a_copy_has_a_memory_of_its_own(make: Make) -> None:
    model = make(SMALL)
    twin = copy.deepcopy(model)
    assert twin.memory is not model.memory
    memcore.unwrap(twin)
    assert torch.equal(logits(twin), logits(with_lora(tiny_model("llama"))))
    assert model.memory.config == SMALL


def test_prompt_tuning_works_and_prefix_tuning_is_refused() -> None:
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    plain = peft.get_peft_model(tiny_model("llama"), prompts).eval()
    expected = logits(plain)
    torch.testing.assert_close(logits(memcore.wrap(plain, EVERYTHING)), expected, atol=1e-4, rtol=0)
    prefix = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = memcore.wrap(peft.get_peft_model(tiny_model("llama"), prefix), SMALL)
    with pytest.raises(memcore.UnsupportedCacheError, match="3 tokens that were fed without memory"):
        model(TEXT)


def tokens_of_each_forward(model: Any) -> list[int]:
    """Return how many tokens the decoder is given at a time while ``generate()`` writes 12 after 95."""
    lengths: list[int] = []

    def note(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        given = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
        lengths.append(given.shape[1])

    hook = model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    model.generate(input_ids=random_tokens(1, 95, seed=8), max_new_tokens=12, do_sample=False)
    hook.remove()
    return lengths


@pytest.mark.parametrize("first", ["memory", "peft"])
@pytest.mark.parametrize("kind", ["lora", "prompts"])
def test_adapted_phi3_reads_a_growing_text_once_while_it_has_a_memory(kind: str, first: str) -> None:
    # Its own prepare_inputs_for_generation drops the cache when a text passes original_max_position_embeddings.
    def adapted(model: Any) -> Any:
        if kind == "lora":
            config: Any = peft.LoraConfig(r=4, target_modules=["qkv_proj", "o_proj"], task_type="CAUSAL_LM")
        else:
            config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        return peft.get_peft_model(model, config).eval()

    def phi3() -> Any:
        return tiny_model("phi3", original_max_position_embeddings=100)

    model = adapted(memcore.wrap(phi3(), SMALL)) if first == "memory" else memcore.wrap(adapted(phi3()), SMALL)
    inside = model.get_base_model()
    # peft's generate() puts a method of its own into the model inside, and out again. Virtual tokens it gives to
    # transformers 5.24 at each step, of any family.
    expected = [1] * 11 if kind == "lora" else tokens_of_each_forward(adapted(tiny_model("llama")))[1:]
    assert tokens_of_each_forward(model)[1:] == expected
    assert tokens_of_each_forward(inside)[1:] == [1] * 11
    memcore.unwrap(model)
    assert tokens_of_each_forward(model) == tokens_of_each_forward(adapted(phi3()))
    assert tokens_of_each_forward(inside) == tokens_of_each_forward(phi3()) != [95] + [1] * 11
