"""The oracles that decide what is right, on tiny random models of every family.

Identity and causality hold bit for bit in every dtype. Full recall computes the same sums in another order, and some
kernels choose another one for another mask: in float32 that may cost 1e-4, in bfloat16 a few roundings of the largest
logit (see ``close`` in ``tests/reference.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import torch
from memcore_adapters.delegate import delegate_for
from reference import close
from tiny_models import FAMILIES, FEW_FAMILIES, attentions, padded_batch, random_tokens, tiny_model
from transformers import AttentionInterface, AttentionMaskInterface

import memcore
from memcore import MemoryConfig
from memcore.rotary import rotate

SMALL = MemoryConfig(window=32, chunk_size=8, sinks=4, top_k=2, query_tokens=6, question_tokens=5, retrieve_every=3)
EVERYTHING = attrs.evolve(SMALL, top_k=10_000, positions="original")

LEARNED = ("gpt2", "opt")  # a vector for each position is part of the hidden states
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

every_family = pytest.mark.parametrize("family", list(FAMILIES))
few_families = pytest.mark.parametrize("family", FEW_FAMILIES)


def _case(family: str, attention: str, dtype: str) -> Any:
    # By default one attention runs in both dtypes: how memcore rounds does not depend on it.
    slow = (attention == "flex_attention" and (family != "llama" or dtype == "bf16")) or (
        attention == "eager" and dtype == "bf16" and "sdpa" in attentions(family)
    )
    return pytest.param(family, attention, dtype, marks=[pytest.mark.slow] if slow else [])


every_case = pytest.mark.parametrize(
    ("family", "attention", "dtype"),
    [_case(family, attention, dtype) for family in FAMILIES for attention in attentions(family) for dtype in DTYPES],
)
oracle = pytest.mark.oracle


@pytest.fixture(autouse=True)
def _flex_attention_is_not_compiled() -> Iterator[None]:
    # It takes seconds for each of some shapes; test_flex_attention.py does compile it.
    with torch.compiler.set_stance("force_eager"):
        yield


def make(family: str, attention: str = "", dtype: str = "fp32") -> Any:
    return tiny_model(family, attention=attention).to(DTYPES[dtype])


@functools.cache
def changed_later(tokens: int, t: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two batches of ids that are the same up to ``t``."""
    ids = random_tokens(2, tokens, seed=7)
    changed = ids.clone()
    changed[:, t + 1 :] = random_tokens(2, tokens - t - 1, seed=t)
    return ids, changed


def in_steps(model: Any, batch: dict[str, torch.Tensor], steps: int) -> torch.Tensor:
    """Feed a batch padded on the left, then tokens one at a time, and return the logits of each step."""
    following = random_tokens(len(batch["input_ids"]), steps, seed=6)
    output = model(**batch, use_cache=True)
    cache, logits = output.past_key_values, [output.logits[:, -1:]]
    mask, position = batch["attention_mask"], batch["position_ids"][:, -1:]
    for i in range(steps):
        mask, position = torch.cat((mask, torch.ones_like(mask[:, :1])), dim=1), position + 1
        token = following[:, i : i + 1]
        output = model(token, attention_mask=mask, position_ids=position, past_key_values=cache)
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


@oracle("identity")
@every_case
@torch.no_grad()
def test_inside_the_window_logits_are_bit_identical(family: str, attention: str, dtype: str) -> None:
    model = make(family, attention, dtype)
    batch = padded_batch([36, 21], side="left", seed=1)  # window and sinks together, to the last token
    expected = model(**batch).logits
    memcore.wrap(model, SMALL)
    assert torch.equal(model(**batch).logits, expected)


@oracle("identity")
@every_case
@torch.no_grad()
def test_inside_the_window_decoding_is_bit_identical(family: str, attention: str, dtype: str) -> None:
    model = make(family, attention, dtype)
    batch = padded_batch([26, 17], side="left", seed=2)
    expected = in_steps(model, batch, steps=10)
    memcore.wrap(model, SMALL)
    assert torch.equal(in_steps(model, batch, steps=10), expected)


@oracle("full recall")
@every_case
@torch.no_grad()
def test_full_recall_in_prefill_equals_full_attention(family: str, attention: str, dtype: str) -> None:
    model = make(family, attention, dtype)
    tokens = random_tokens(2, 120, seed=3)
    expected = model(tokens).logits
    memcore.wrap(model, EVERYTHING)
    close(model(tokens).logits, expected)


@oracle("full recall")
@every_case
@torch.no_grad()
def test_full_recall_of_a_padded_batch_equals_full_attention(family: str, attention: str, dtype: str) -> None:
    model = make(family, attention, dtype)
    batch = padded_batch([120, 30, 77, 3], side="left", seed=4)
    real = batch["attention_mask"].bool()
    expected = model(**batch).logits
    memcore.wrap(model, EVERYTHING)
    close(model(**batch).logits[real], expected[real])


@oracle("full recall")
@every_case
@torch.no_grad()
def test_full_recall_in_decode_equals_full_attention(family: str, attention: str, dtype: str) -> None:
    # With every chunk recalled the block before the window is the document itself, so both kinds of positions agree.
    model = make(family, attention, dtype)
    batch = padded_batch([70, 41], side="left", seed=5)
    expected = in_steps(model, batch, steps=16)
    memcore.wrap(model, attrs.evolve(EVERYTHING, positions="window", retrieve_every=1))
    close(in_steps(model, batch, steps=16), expected)


@oracle("causality")
@every_case
@torch.no_grad()
def test_changing_later_tokens_changes_no_earlier_logit(family: str, attention: str, dtype: str) -> None:
    model = memcore.wrap(make(family, attention, dtype), SMALL)
    logits = model(changed_later(100, 0)[0]).logits
    for t in (35, 75, 97):  # the window's end, a segment's middle, within the question
        assert torch.equal(model(changed_later(100, t)[1]).logits[:, : t + 1], logits[:, : t + 1])


@oracle("rotation")
@every_case
@torch.no_grad()
def test_keys_turn_as_the_geometry_says(
    family: str, attention: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A token on its own has the same hidden states wherever it stands, so that its keys differ by their rotation only.
    model = make(family, attention, dtype)
    geometries = [setup.geometry for setup in memcore.wrap(model, SMALL).memory.layer_setups]
    layers = [setup.index for setup in model.memory.layer_setups]
    memcore.unwrap(model)
    keys: dict[int, list[torch.Tensor]] = {}

    def spy(module: Any, query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        keys.setdefault(module.layer_idx, []).append(key)
        return delegate_for(model.get_decoder(), attention).function(module, query, key, *args, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, "spy", spy)
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "spy", AttentionMaskInterface()[attention])
    model.set_attn_implementation("spy")
    token, shift = random_tokens(1, 1, seed=14), 777
    for position in (0, shift):
        model(token, position_ids=torch.tensor([[position]]))
    for index, geometry in zip(layers, geometries, strict=True):
        here, there = keys[index]
        if geometry is not None:
            assert not torch.equal(here, there)
            here = rotate(here, torch.tensor(shift), geometry)
        if family not in LEARNED:
            tolerance = 1e-4 if dtype == "fp32" else 4 * torch.finfo(torch.bfloat16).eps * float(there.abs().max())
            torch.testing.assert_close(here, there, atol=tolerance, rtol=0)


@oracle("effect")
@every_case
@torch.no_grad()
def test_memory_has_an_effect_and_retrieval_reads_chunks_far_outside_the_window(
    family: str, attention: str, dtype: str
) -> None:
    # Without this, every oracle above could hold for a memory that does nothing.
    model = make(family, attention, dtype)
    tokens = random_tokens(1, 100, seed=10)
    changed = tokens.clone()
    changed[:, 4:60] = random_tokens(1, 56, seed=11)
    memcore.wrap(model, SMALL)
    logits = model(tokens).logits[:, -1]
    starts = [passage.start for passage in model.memory.passages()]
    assert len(starts) >= SMALL.chunks
    assert max(starts) < 100 - SMALL.window_length
    assert not torch.equal(model(changed).logits[:, -1], logits)


@oracle("unwrap")
@every_case
@torch.no_grad()
def test_unwrap_gives_back_the_exact_model(family: str, attention: str, dtype: str) -> None:
    model = make(family, attention, dtype)
    tokens = random_tokens(1, 80, seed=12)
    names, attributes = list(model.state_dict()), [set(vars(each)) for each in model.modules()]
    expected = model(tokens).logits
    memcore.wrap(model, SMALL)
    model(tokens)
    assert memcore.unwrap(model) is model
    assert torch.equal(model(tokens).logits, expected)
    assert model.config._attn_implementation == attention
    assert list(model.state_dict()) == names
    assert [set(vars(each)) for each in model.modules()] == attributes


@every_family
@torch.no_grad()
def test_positions_are_counted_by_the_model_itself_where_none_are_given(family: str) -> None:
    model = make(family)
    batch = padded_batch([120, 50], side="left", seed=13)
    del batch["position_ids"]
    real = batch["attention_mask"].bool()
    expected = model(**batch).logits
    memcore.wrap(model, EVERYTHING)
    close(model(**batch).logits[real], expected[real])


@few_families
@torch.no_grad()
def test_padding_on_the_right_is_no_different(family: str) -> None:
    model = make(family)
    short, long = (padded_batch(lengths, side="right", seed=1) for lengths in ([36, 21], [150, 30, 97, 3]))
    real = long["attention_mask"].bool()
    expected, expected_long = model(**short).logits, model(**long).logits
    memcore.wrap(model, EVERYTHING)
    assert torch.equal(model(**short).logits, expected)
    close(model(**long).logits[real], expected_long[real])


@few_families
@pytest.mark.parametrize("sinks", [0, 4])
@pytest.mark.parametrize("segment", [1, 7, 16, 24])
@torch.no_grad()
def test_sinks_and_segments_of_any_length_recall_everything(family: str, sinks: int, segment: int) -> None:
    model = make(family)
    batch = padded_batch([150, 97], side="left", seed=3)
    real = batch["attention_mask"].bool()
    expected = model(**batch).logits
    memcore.wrap(model, attrs.evolve(EVERYTHING, sinks=sinks, segment=segment))
    close(model(**batch).logits[real], expected[real])


@few_families
@pytest.mark.parametrize("rerank", [0, 3])
@torch.no_grad()
def test_causality_holds_wherever_the_change_begins(family: str, rerank: int) -> None:
    model = memcore.wrap(make(family), attrs.evolve(SMALL, rerank=rerank))
    logits = model(changed_later(140, 0)[0]).logits
    for t in (10, 36, 60, 133, 138):
        assert torch.equal(model(changed_later(140, t)[1]).logits[:, : t + 1], logits[:, : t + 1])


@few_families
@torch.no_grad()
def test_changing_later_tokens_changes_no_earlier_retrieval(family: str) -> None:
    model = memcore.wrap(make(family), SMALL)
    tokens = random_tokens(1, 140, seed=8)
    changed = tokens.clone()
    changed[:, 100:] = random_tokens(1, 40, seed=9)
    seen = []
    for each in (tokens, changed):
        output = model(each[:, :100], use_cache=True)
        seen.append([p.start for p in model.memory.passages(output.past_key_values)])
        model(each[:, 100:], past_key_values=output.past_key_values)
    assert seen[0] == seen[1]


def test_one_adapter_can_wrap_several_models() -> None:
    adapter = memcore.AutoAdapter(SMALL)
    models = [tiny_model("llama", attention=attention) for attention in ("sdpa", "eager")]
    for model in models:
        adapter.wrap(model)
    for model in models:
        adapter.unwrap(model)
    assert [model.config._attn_implementation for model in models] == ["sdpa", "eager"]
