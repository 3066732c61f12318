"""Losses of long texts, against the softmax of a forward that sees exactly what the way of reading lets it see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import random_tokens, tiny_model
from torch import Tensor

import memcore
from memcore.evaluation.losses import cached_losses, windowed_losses

TEXT = random_tokens(1, 200, seed=1)
SPANS = [(1, 50), (100, 200)]


@torch.no_grad()
def loss_at(model: Any, position: int, *, first: int = 0) -> float:
    """Return the loss of one token after those from ``first`` on."""
    logits = model(TEXT[:, first:position]).logits[0, -1].double()
    return float(-logits.log_softmax(dim=-1)[TEXT[0, position]])


def scored(losses: Tensor) -> list[int]:
    return (~losses.isnan()).nonzero().flatten().tolist()


@pytest.mark.parametrize("piece", [16, 64, 300])
def test_full_attention_sees_all_that_came_before(piece: int) -> None:
    model = tiny_model("llama")
    losses = cached_losses(model, TEXT, SPANS, piece=piece)
    assert scored(losses) == [*range(1, 50), *range(100, 200)]
    for position in (1, 15, 16, 17, 49, 100, 128, 199):
        assert float(losses[position]) == pytest.approx(loss_at(model, position), abs=1e-5)


@pytest.mark.parametrize(("window", "stride"), [(32, 32), (32, 8), (32, 1), (500, 500)])
def test_a_window_sees_its_own_tokens_only(window: int, stride: int) -> None:
    model = tiny_model("llama")
    losses = windowed_losses(model, TEXT, SPANS, window=window, stride=stride)
    assert scored(losses) == [*range(1, 50), *range(100, 200)]
    for position in (1, 2, 31, 32, 33, 49, 100, 150, 199):
        begin = position // stride * stride
        first = max(0, min(min(begin + stride, 200) - window, begin - 1))
        assert window - stride <= position - first or first == 0 or stride == window
        assert position - first <= window
        assert float(losses[position]) == pytest.approx(loss_at(model, position, first=first), abs=1e-5)


def test_a_memory_that_recalls_everything_scores_as_full_attention() -> None:
    model = tiny_model("llama")
    expected = cached_losses(model, TEXT, SPANS, piece=64)
    memcore.wrap(model, window=32, chunk_size=8, top_k=1000, positions="original")
    torch.testing.assert_close(cached_losses(model, TEXT, SPANS, piece=64), expected, atol=1e-4, rtol=0, equal_nan=True)


def test_no_piece_of_a_text_is_taken_for_a_question() -> None:
    model = tiny_model("llama")
    memcore.wrap(model, window=32, sinks=4, chunk_size=8, top_k=2, segment=16)
    lengths: list[int] = []
    hook = model.model.layers[0].register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    cached_losses(model, TEXT, [(1, 100)], piece=32)
    hook.remove()
    assert lengths == [36, 16, 16, 16, 16]


@pytest.mark.parametrize("wrapped", [False, True])
def test_later_tokens_change_no_earlier_loss(wrapped: bool) -> None:
    model = tiny_model("llama")
    if wrapped:
        memcore.wrap(model, window=32, chunk_size=8, top_k=2)
    changed = TEXT.clone()
    changed[:, 120:] = random_tokens(1, 80, seed=2)
    losses = [cached_losses(model, each, [(1, 200)], piece=32) for each in (TEXT, changed)]
    assert torch.equal(losses[0][1:120], losses[1][1:120])
    assert not torch.equal(losses[0][121:], losses[1][121:])


def test_progress_ends_with_the_last_token_scored() -> None:
    calls: list[tuple[int, int]] = []
    cached_losses(
        tiny_model("llama"), TEXT, [(1, 90)], piece=32, progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(32, 90), (64, 90), (90, 90)]


@pytest.mark.parametrize("span", [(0, 5), (5, 5), (190, 201)])
def test_spans_outside_the_text_are_refused(span: tuple[int, int]) -> None:
    with pytest.raises(memcore.UnsupportedInputError, match="cannot be scored"):
        cached_losses(tiny_model("llama"), TEXT, [span], piece=32)
