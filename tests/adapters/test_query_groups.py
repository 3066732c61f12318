"""One token's attention by groups of query heads gives what transformers' gives, and is used once memory is at work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from memcore_adapters.query_groups import can_be_grouped, in_groups
from tiny_models import random_tokens, tiny_model
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import memcore


class Module(torch.nn.Module):
    """What transformers' function wants to know of an attention module."""

    is_causal = True
    num_key_value_groups = 3


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Return a query ``[2, 6, 1, 8]``, and keys and values of 2 heads, 40 each, values of another size."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 6, 1, 8), (2, 2, 40, 8), (2, 2, 40, 4))
    query, key, value = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return query, key, value


def masks() -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    seen = torch.rand(2, 1, 1, 40, generator=generator) < 0.7
    return {
        "none": None,
        "seen": seen,
        "of all rows": seen[:1],
        "added": torch.randn(2, 1, 1, 40, generator=generator, dtype=torch.float64),
        "added to each head": torch.randn(2, 6, 1, 40, generator=generator, dtype=torch.float64),
    }


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("mask", masks())
def test_groups_give_what_each_head_gives(mask: str, scaling: float | None) -> None:
    query, key, value = inputs()
    given = masks()[mask]
    assert can_be_grouped(query, key, given, {"dropout": 0.0, "scaling": scaling})
    grouped, _ = in_groups(query, key, value, given, scaling=scaling)
    wanted, _ = sdpa_attention_forward(Module(), query, key, value, given, scaling=scaling)
    assert grouped.shape == wanted.shape == (2, 1, 6, 4)
    torch.testing.assert_close(grouped, wanted, rtol=1e-12, atol=1e-12)
    keys, values = key.repeat_interleave(3, dim=1), value.repeat_interleave(3, dim=1)
    plain = torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=given, scale=scaling)
    torch.testing.assert_close(grouped, plain.transpose(1, 2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_no_less_precise_than_head_by_head(dtype: torch.dtype) -> None:
    query, key, value = inputs(dtype)
    exact = in_groups(query.double(), key.double(), value.double(), None, scaling=None)[0]
    grouped, _ = in_groups(query, key, value, None, scaling=None)
    assert grouped.dtype == dtype
    torch.testing.assert_close(grouped.double(), exact, rtol=0, atol=4 * torch.finfo(dtype).eps)


def test_what_cannot_be_grouped_is_left_alone() -> None:
    query, key, _ = inputs()
    assert can_be_grouped(query, key, None, {})
    assert not can_be_grouped(query.expand(-1, -1, 2, -1), key, None, {}), "several tokens"
    assert not can_be_grouped(query[:, :2], key, None, {}), "a key/value head for each"
    assert not can_be_grouped(query.clone().requires_grad_(), key, None, {})
    assert not can_be_grouped(query, key, object(), {}), "a mask of another kind"
    assert not can_be_grouped(query.to("meta"), key.to("meta"), None, {}), "another device"
    for options in ({"dropout": 0.1}, {"softcap": 30.0}, {"position_bias": query}):
        assert not can_be_grouped(query, key, None, options)


@pytest.mark.parametrize("family", ["gemma3_text", "qwen2"])
def test_generated_tokens_attend_by_groups_once_memory_is_at_work(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = random_tokens(1, 80, seed=3)
    model = memcore.wrap(tiny_model(family), window=32, segment=16, chunk_size=8, sinks=4, top_k=2, question_tokens=0)
    grouped: list[int] = []

    def counted(query: Tensor, *rest: Any, **options: Any) -> Any:
        grouped.append(query.shape[1])
        return in_groups(query, *rest, **options)

    def logits(tokens: int) -> Tensor:
        with torch.no_grad():
            cache = model(ids[:, : tokens - 1], use_cache=True).past_key_values
            found: Tensor = model(ids[:, tokens - 1 : tokens], past_key_values=cache).logits
        return found

    monkeypatch.setattr("memcore_adapters.interface.in_groups", counted)
    logits(36)
    assert not grouped, "what fits the window is bit for bit as without memory"
    some = logits(80)
    assert len(grouped) == model.config.num_hidden_layers
    monkeypatch.setattr("memcore_adapters.interface.can_be_grouped", lambda *_: False)
    torch.testing.assert_close(some, logits(80), rtol=1e-4, atol=1e-4)
