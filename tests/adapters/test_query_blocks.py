"""Sliding attention in blocks of queries gives what it gives at once, and is used once memory is at work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from memcore_adapters import query_blocks
from memcore_adapters.query_blocks import BLOCK, can_be_cut, in_blocks
from tiny_models import random_tokens, tiny_model
from torch import Tensor

import memcore


def at_once(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    output = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, **kwargs)
    return output.transpose(1, 2).contiguous(), None


@pytest.mark.parametrize("tokens", [BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 77])
@pytest.mark.parametrize("batch", [1, 2])
def test_blocks_give_what_all_at_once_gives(tokens: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    span, past = 100, 99
    query = torch.randn(batch, 4, tokens, 8, generator=generator, dtype=torch.float64)
    key, value = (torch.randn(batch, 2, past + tokens, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    place = torch.arange(past, past + tokens)[:, None]
    mask = ((torch.arange(past + tokens) <= place) & (torch.arange(past + tokens) > place - span))[None, None]
    mask = mask.repeat(batch, 1, 1, 1)
    mask[-1, :, :, : past + 20] &= torch.eye(tokens, past + tokens, dtype=torch.bool).roll(past, 1)[:, : past + 20]
    assert can_be_cut(query, key, mask)
    widths = []

    def watched(module: Any, query: Tensor, key: Tensor, *rest: Any, **kwargs: Any) -> tuple[Tensor, None]:
        widths.append(key.shape[2])
        return at_once(module, query, key, *rest, **kwargs)

    cut, _ = in_blocks(watched, None, query, key, value, mask, scale=0.3)
    torch.testing.assert_close(cut, at_once(None, query, key, value, mask, scale=0.3)[0], rtol=1e-12, atol=1e-12)
    assert max(widths) < span + BLOCK, "keys that no query sees are left out"


@pytest.mark.parametrize(
    ("tokens", "keys", "mask"),
    [
        (BLOCK, 2 * BLOCK, torch.ones(1, 1, BLOCK, 2 * BLOCK, dtype=torch.bool)),
        (2 * BLOCK, 2 * BLOCK, None),
        (2 * BLOCK, 2 * BLOCK, torch.zeros(1, 1, 2 * BLOCK, 2 * BLOCK)),
        (2 * BLOCK, 2 * BLOCK, torch.ones(1, 1, 2 * BLOCK, 3 * BLOCK, dtype=torch.bool)),
    ],
)
def test_what_cannot_be_cut_is_left_alone(tokens: int, keys: int, mask: Tensor | None) -> None:
    assert not can_be_cut(torch.zeros(1, 1, tokens, 2), torch.zeros(1, 1, keys, 2), mask)


def test_what_gradients_go_through_is_left_alone() -> None:
    mask = torch.ones(1, 1, 2 * BLOCK, 2 * BLOCK, dtype=torch.bool)
    query = torch.zeros(1, 1, 2 * BLOCK, 2)
    assert can_be_cut(query, query, mask)
    assert not can_be_cut(query.clone().requires_grad_(), query, mask)


@pytest.mark.parametrize("family", ["cohere2", "gemma3_text"])
def test_sliding_layers_are_cut_once_memory_is_at_work(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = random_tokens(1, 150, seed=3)
    model = memcore.wrap(tiny_model(family), window=32, segment=16, chunk_size=8, sinks=4, question_tokens=0)

    def read() -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(ids).logits
        return logits

    whole = read()
    monkeypatch.setattr(query_blocks, "BLOCK", 5)
    cut: list[int] = []
    attend = query_blocks.in_blocks

    def counted(function: Any, module: Any, query: Tensor, *rest: Any, **kwargs: Any) -> Any:
        cut.append(query.shape[2])
        return attend(function, module, query, *rest, **kwargs)

    monkeypatch.setattr("memcore_adapters.interface.in_blocks", counted)
    torch.testing.assert_close(read(), whole, rtol=1e-4, atol=1e-4)
    assert set(cut) == {16}, "segments; not the first piece, which is as it is without memory, nor a short last one"
