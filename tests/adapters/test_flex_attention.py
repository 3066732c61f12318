"""Flex attention: its block masks say what memory makes visible, and it is exact when it is compiled."""

from __future__ import annotations

import shutil

import attrs
import pytest
import torch
from memcore_adapters.delegate import delegate_for
from tiny_models import random_tokens, tiny_model

import memcore
from memcore import MemoryConfig
from memcore.attention import visibility

SMALL = MemoryConfig(window=32, chunk_size=8, sinks=4, top_k=2, query_tokens=6, question_tokens=2, retrieve_every=3)
EVERYTHING = attrs.evolve(SMALL, top_k=10_000, positions="original")


@pytest.mark.parametrize(("past", "new"), [(0, 5), (7, 1), (9, 6), (130, 140)])
@pytest.mark.parametrize("padded", [False, True])
def test_block_masks_say_what_is_visible(past: int, new: int, padded: bool) -> None:
    past_live = torch.rand(2, past) < 0.7 if padded else None
    new_live = torch.arange(new) >= torch.tensor([[0], [new // 2]]) if padded else None
    visible = visibility(past_live, new_live, past, new)
    query, key = torch.zeros(2, 4, new, 8), torch.zeros(2, 2, past + new, 8)
    blocks = delegate_for(tiny_model("llama").get_decoder(), "flex_attention").mask_from(visible, query, key)
    expected = torch.ones(2, new, past + new, dtype=torch.bool) if visible is None else visible[:, 0].expand(2, -1, -1)
    rows, queries, keys = torch.meshgrid(*map(torch.arange, expected.shape), indexing="ij")
    seen = blocks.mask_mod(rows, torch.zeros_like(rows), queries, keys)
    real = torch.ones(2, new, dtype=torch.bool) if new_live is None else new_live  # padding may see anything
    assert torch.equal(seen[real], expected[real])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_gate_is_refused_with_flex_attention() -> None:
    model = memcore.wrap(tiny_model("llama", attention="flex_attention"), attrs.evolve(SMALL, gate=True))
    with (
        torch.no_grad(),
        torch.compiler.set_stance("force_eager"),
        pytest.raises(memcore.UnsupportedModelError, match=r"which a gate needs.*'sdpa' or 'eager'"),
    ):
        model(random_tokens(1, 100, seed=0))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="torch needs a C++ compiler")
@torch.no_grad()
def test_compiled_flex_attention_passes_the_oracles() -> None:
    # Without padding: torch 2.13 cannot compile that, nor gemma2, for a text that is fed in parts to a CPU.
    model = tiny_model("llama", attention="flex_attention")
    short, long = random_tokens(2, 36, seed=1), random_tokens(2, 100, seed=2)
    expected, expected_long = model(short).logits, model(long).logits
    memcore.wrap(model, EVERYTHING)
    assert torch.equal(model(short).logits, expected)
    torch.testing.assert_close(model(long).logits, expected_long, atol=1e-4, rtol=0)
    memcore.unwrap(model)
    memcore.wrap(model, SMALL)
    logits = model(long).logits
    changed = long.clone()
    changed[:, 71:] = random_tokens(2, 29, seed=3)
    assert torch.equal(model(changed).logits[:, :71], logits[:, :71])
