"""The oracles that decide what is right, on tiny random models of every family."""

from __future__ import annotations

import attrs
import pytest
import torch
from tiny_models import FAMILIES, padded_batch, random_tokens, tiny_model

import memcore
from memcore import MemoryConfig

SMALL = MemoryConfig(window=32, chunk_size=8, sinks=4, top_k=2, query_tokens=6, question_tokens=5, retrieve_every=3)
EVERYTHING = attrs.evolve(SMALL, top_k=10_000, positions="original")

families = pytest.mark.parametrize("family", list(FAMILIES))
attentions = pytest.mark.parametrize("attention", ["sdpa", "eager"])


@families
@attentions
@pytest.mark.parametrize("side", ["left", "right"])
def test_inside_the_window_logits_are_bit_identical(family: str, attention: str, side: str) -> None:
    model = tiny_model(family, attention=attention)
    batch = padded_batch([36, 21], side=side, seed=1)  # window and sinks together, to the last token
    with torch.no_grad():
        expected = model(**batch).logits
        memcore.wrap(model, SMALL)
        assert torch.equal(model(**batch).logits, expected)


@families
def test_inside_the_window_decoding_is_bit_identical(family: str) -> None:
    model = tiny_model(family)
    tokens = random_tokens(2, 36, seed=2)

    def decode() -> torch.Tensor:
        cache, logits = None, []
        for begin, end in [(0, 20), *((i, i + 1) for i in range(20, 36))]:
            output = model(tokens[:, begin:end], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits.append(output.logits)
        return torch.cat(logits, dim=1)

    with torch.no_grad():
        expected = decode()
        memcore.wrap(model, SMALL)
        assert torch.equal(decode(), expected)


@families
@attentions
@pytest.mark.parametrize("sinks", [0, 4])
@pytest.mark.parametrize("segment", [1, 7, 16, 24])
def test_full_recall_in_prefill_equals_full_attention(family: str, attention: str, sinks: int, segment: int) -> None:
    model = tiny_model(family, attention=attention)
    tokens = random_tokens(2, 150, seed=3)
    with torch.no_grad():
        expected = model(tokens).logits
        memcore.wrap(model, attrs.evolve(EVERYTHING, sinks=sinks, segment=segment))
        torch.testing.assert_close(model(tokens).logits, expected, atol=1e-4, rtol=0)


@families
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("sinks", [0, 4])
def test_full_recall_of_a_padded_batch_equals_full_attention(family: str, side: str, sinks: int) -> None:
    model = tiny_model(family)
    batch = padded_batch([150, 30, 97, 3], side=side, seed=4)
    with torch.no_grad():
        expected = model(**batch).logits
        memcore.wrap(model, attrs.evolve(EVERYTHING, sinks=sinks))
        logits = model(**batch).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(logits[real], expected[real], atol=1e-4, rtol=0)


@families
@pytest.mark.parametrize("positions", ["original", "window"])
def test_full_recall_in_decode_equals_full_attention(family: str, positions: str) -> None:
    # With every chunk recalled the block before the window is the document itself, so both kinds of positions agree.
    model = tiny_model(family)
    batch = padded_batch([90, 41], side="left", seed=5)
    continuation = random_tokens(2, 50, seed=6)

    def decode() -> torch.Tensor:
        output = model(**batch, use_cache=True)
        cache, logits = output.past_key_values, [output.logits[:, -1:]]
        mask, position = batch["attention_mask"], batch["position_ids"][:, -1:]
        for i in range(continuation.shape[1]):
            mask, position = torch.cat((mask, torch.ones(2, 1, dtype=torch.long)), dim=1), position + 1
            token = continuation[:, i : i + 1]
            output = model(token, attention_mask=mask, position_ids=position, past_key_values=cache)
            logits.append(output.logits)
        return torch.cat(logits, dim=1)

    with torch.no_grad():
        expected = decode()
        memcore.wrap(model, MemoryConfig.from_value(EVERYTHING, positions=positions, retrieve_every=1))
        torch.testing.assert_close(decode(), expected, atol=1e-4, rtol=0)


@families
@attentions
@pytest.mark.parametrize("rerank", [0, 3])
def test_changing_later_tokens_changes_no_earlier_logit(family: str, attention: str, rerank: int) -> None:
    model = memcore.wrap(tiny_model(family, attention=attention), attrs.evolve(SMALL, rerank=rerank))
    tokens = random_tokens(2, 140, seed=7)
    with torch.no_grad():
        logits = model(tokens).logits
        for t in (10, 35, 36, 60, 99, 133, 138):
            changed = tokens.clone()
            changed[:, t + 1 :] = random_tokens(2, 140 - t - 1, seed=t)
            assert torch.equal(model(changed).logits[:, : t + 1], logits[:, : t + 1])


@families
def test_changing_later_tokens_changes_no_earlier_retrieval(family: str) -> None:
    model = memcore.wrap(tiny_model(family), SMALL)
    tokens = random_tokens(1, 140, seed=8)
    changed = tokens.clone()
    changed[:, 100:] = random_tokens(1, 40, seed=9)
    seen = []
    with torch.no_grad():
        for each in (tokens, changed):
            output = model(each[:, :100], use_cache=True)
            seen.append([p.start for p in model.memory.passages(output.past_key_values)])
            model(each[:, 100:], past_key_values=output.past_key_values)
    assert seen[0] == seen[1]


@families
def test_memory_has_an_effect_and_retrieval_reads_chunks_far_outside_the_window(family: str) -> None:
    # Without this, every oracle above could hold for a memory that does nothing.
    model = tiny_model(family)
    tokens = random_tokens(1, 140, seed=10)
    changed = tokens.clone()
    changed[:, 4:60] = random_tokens(1, 56, seed=11)
    with torch.no_grad():
        memcore.wrap(model, SMALL)
        logits = model(tokens).logits[:, -1]
        starts = [passage.start for passage in model.memory.passages()]
        assert len(starts) >= SMALL.top_k
        assert max(starts) < 140 - SMALL.window
        assert not torch.equal(model(changed).logits[:, -1], logits)


@families
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_unwrap_gives_back_the_exact_model(family: str, attention: str) -> None:
    model = tiny_model(family, attention=attention)
    tokens = random_tokens(1, 80, seed=12)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        expected = model(tokens).logits
        assert memcore.unwrap(memcore.wrap(model, SMALL)) is model
        assert torch.equal(model(tokens).logits, expected)
    assert model.config._attn_implementation == attention
    assert not hasattr(model, "memory")
    assert "forward" not in vars(model.get_decoder())
    assert list(before) == list(model.state_dict())


def test_one_adapter_can_wrap_several_models() -> None:
    adapter = memcore.AutoAdapter(SMALL)
    models = [tiny_model("llama", attention=attention) for attention in ("sdpa", "eager")]
    for model in models:
        adapter.wrap(model)
    for model in models:
        adapter.unwrap(model)
    assert [model.config._attn_implementation for model in models] == ["sdpa", "eager"]
