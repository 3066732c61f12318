"""Training on texts longer than the window: losses, gradients, gradient checkpointing."""

from __future__ import annotations

import gc
from collections import Counter
from typing import Any

import attrs
import pytest
import torch
from tiny_models import FAMILIES, padded_batch, random_tokens, tiny_model
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

import memcore
from memcore import MemoryConfig
from memcore.schedule import pieces

SMALL = MemoryConfig(window=32, chunk_size=8, sinks=4, top_k=2, query_tokens=6, question_tokens=5, retrieve_every=3)
EVERYTHING = attrs.evolve(SMALL, top_k=10_000, positions="original")
LENGTH = 120

families = pytest.mark.parametrize("family", ["llama", "gemma3_text"])  # without and with sliding layers


def step(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss and its gradients."""
    model.zero_grad()
    labels = batch["input_ids"].masked_fill(batch.get("attention_mask", torch.ones(1, 1)) == 0, -100)
    loss = model(**batch, labels=labels).loss
    loss.backward()
    return loss.detach(), {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def checkpoint(model: Any, options: dict[str, bool] | None = None) -> None:
    """Turn gradient checkpointing on, by its new name where there is one."""
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)(options)


def assert_same_step(got: tuple[Tensor, dict[str, Tensor]], want: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(got[0], want[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(got[1], want[1], atol=1e-5, rtol=1e-4)


def first_in_window(tokens: int, config: MemoryConfig) -> Tensor:
    """Return for each token, ``[tokens]``, the first one that is in the window with it."""
    room, first, firsts = config.window_length + config.sinks, 0, []
    cut = pieces(tokens, 0, room=room, segment=config.segment_length, question_tokens=0)
    for begin, end in cut:
        if end > room:
            first = first or config.sinks
            first += max(0, -(-(end - first - config.window_length) // config.chunk_size)) * config.chunk_size
        firsts += [first] * (end - begin)
    return torch.tensor(firsts)


def full_attention_through_the_window(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Full attention whose gradient passes through no key and value that has left the window."""
    groups, tokens = query.shape[1] // key.shape[1], query.shape[2]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    left = torch.arange(tokens) < first_in_window(tokens, EVERYTHING)[:, None]
    if getattr(module, "is_sliding", False):
        left = torch.zeros_like(left)
    logits = torch.where(left, query @ key.detach().mT, query @ key.mT) * scaling + mask
    weights = logits.softmax(dim=-1)
    output = weights.where(left, 0) @ value.detach() + weights.where(~left, 0) @ value
    return output.transpose(1, 2).contiguous(), None


@pytest.fixture
def reference_attention() -> str:
    name = "reference"
    AttentionInterface.register(name, full_attention_through_the_window)
    AttentionMaskInterface.register(name, eager_mask)
    return name


@families
def test_with_full_recall_the_gradients_are_full_attentions_through_the_window(
    family: str, reference_attention: str
) -> None:
    batch = {"input_ids": random_tokens(2, LENGTH, seed=60)}
    model = tiny_model(family, attention=reference_attention).train()
    want = step(model, batch)
    model.set_attn_implementation("sdpa")
    plain = step(model, batch)
    got = step(memcore.wrap(model, EVERYTHING), batch)
    assert_same_step(got, want)
    torch.testing.assert_close(got[0], plain[0], atol=1e-5, rtol=0)


@families
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("options", [{}, {"use_reentrant": False}, {"use_reentrant": True}], ids=str)
def test_gradient_checkpointing_changes_no_gradient(family: str, attention: str, options: dict[str, bool]) -> None:
    batch = padded_batch([LENGTH, 77], side="right", seed=61)
    model = memcore.wrap(tiny_model(family, attention=attention).train(), SMALL)
    want = step(model, batch)
    layers, runs = model.get_decoder().layers, Counter[int]()
    for index, layer in enumerate(layers):
        layer.mlp.register_forward_pre_hook(lambda *_, index=index: runs.update([index]))
    step(model, batch)
    once = runs.copy()
    runs.clear()
    checkpoint(model, options)
    got = step(model, batch)
    assert all(runs[index] == 2 * once[index] for index in range(len(layers)))  # each piece was computed again
    assert_same_step(got, want)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_gradient_checkpointing_of_every_family_changes_no_gradient(family: str) -> None:
    no_dropout: dict[str, dict[str, Any]] = {
        "opt": {"dropout": 0.0},
        "gpt2": {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    }
    batch = {"input_ids": random_tokens(1, 70, seed=59)}
    model = memcore.wrap(tiny_model(family, **no_dropout.get(family, {})).train(), SMALL)
    want = step(model, batch)
    checkpoint(model)
    assert_same_step(step(model, batch), want)


@pytest.mark.parametrize("positions", ["window", "zero"])
def test_gradient_checkpointing_changes_no_gradient_of_one_memory_layer_and_gates(positions: Any) -> None:
    batch = padded_batch([LENGTH, 77], side="left", seed=69)
    config = attrs.evolve(SMALL, memory_layer=0, gate=True, positions=positions)
    model = memcore.wrap(tiny_model("llama").train(), config)
    want = step(model, batch)
    assert any("memory_gate" in name and bool(each.any()) for name, each in want[1].items())
    checkpoint(model)
    assert_same_step(step(model, batch), want)


def test_checkpointing_some_layers_only_changes_no_gradient() -> None:
    batch = {"input_ids": random_tokens(1, LENGTH, seed=62)}
    model = memcore.wrap(tiny_model("gemma3_text").train(), SMALL)
    want = step(model, batch)
    checkpoint(model)
    model.get_decoder().layers[1].gradient_checkpointing = False
    assert_same_step(step(model, batch), want)
    assert not any("_can_checkpoint_with_cache" in vars(layer) for layer in model.get_decoder().layers)


def test_the_end_of_a_text_is_read_one_token_at_a_time_except_in_training() -> None:
    model = memcore.wrap(tiny_model("llama").train(), SMALL)
    pieces_read: list[int] = []
    model.get_decoder().layers[0].register_forward_pre_hook(lambda _, given: pieces_read.append(given[0].shape[1]))
    text = random_tokens(1, 80, seed=58)
    model(text)
    assert pieces_read == [36, 16, 16, 12]
    pieces_read.clear()
    with torch.no_grad():
        model(text)
    assert pieces_read == [36, 16, 16, 7, 1, 1, 1, 1, 1]


def test_checkpointing_within_the_window_is_the_models_own() -> None:
    batch = {"input_ids": random_tokens(2, 36, seed=63)}
    model = tiny_model("llama").train()
    checkpoint(model)
    want = step(model, batch)
    got = step(memcore.wrap(model, SMALL), batch)
    assert torch.equal(got[0], want[0])
    assert all(torch.equal(got[1][name], want[1][name]) for name in want[1])


def test_two_texts_can_be_read_before_one_backward_pass() -> None:
    texts = random_tokens(2, 1, LENGTH, seed=64)
    model = memcore.wrap(tiny_model("llama").train(), SMALL)

    def gradient() -> Tensor:
        model.zero_grad()
        sum(model(text, labels=text).loss for text in texts).backward()
        return model.lm_head.weight.grad.clone()  # type: ignore[no-any-return]

    want = gradient()
    checkpoint(model)
    torch.testing.assert_close(gradient(), want)


def test_checkpointing_by_another_function_is_refused() -> None:
    model = memcore.wrap(tiny_model("llama").train(), SMALL)
    checkpoint(model)
    for layer in model.get_decoder().layers:
        layer._gradient_checkpointing_func = lambda run, *args: run(*args)
    with pytest.raises(memcore.UnsupportedInputError, match="longer than the window"):
        model(random_tokens(1, LENGTH, seed=65))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_leaves_nothing_in_the_bank(checkpointing: bool) -> None:
    model = memcore.wrap(tiny_model("llama").train(), SMALL)
    if checkpointing:
        checkpoint(model)
    text = random_tokens(1, LENGTH, seed=66)
    loss = model(text, labels=text).loss
    gc.collect()
    assert model.memory.bank.namespaces() == []  # what the backward pass needs is in the graph
    loss.backward()
    assert model.memory.bank.nbytes() == 0


def test_generation_while_checkpointing_is_on_is_the_same() -> None:
    model = memcore.wrap(tiny_model("gemma3_text"), EVERYTHING)
    text = random_tokens(1, 80, seed=67)
    want = model.generate(text, max_new_tokens=12, do_sample=False)
    model.train()
    checkpoint(model)
    assert torch.equal(model.generate(text, max_new_tokens=12, do_sample=False), want)


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_mixed_precision_trains(autocast: torch.dtype) -> None:
    model = memcore.wrap(tiny_model("llama").train(), SMALL)
    text = random_tokens(1, LENGTH, seed=68)
    want = step(model, {"input_ids": text})[0]
    with torch.autocast("cpu", dtype=autocast):
        got, gradients = step(model, {"input_ids": text})
    torch.testing.assert_close(got, want, atol=0, rtol=0.02)
    assert all(bool(each.isfinite().all()) for each in gradients.values())
