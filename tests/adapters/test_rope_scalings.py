"""Every kind of rotary frequencies: exact, or pinned with a warning, or refused."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import attrs
import pytest
import torch
from reference import close
from tiny_models import padded_batch, random_tokens, tiny_model

import memcore
from memcore import MemoryConfig
from memcore.errors import MemcoreWarning
from memcore.rotary import unrotate

LENGTH = 160
"""Longest text, in tokens, that a pinned type has the same frequencies for."""

# Chunks enough for every text here, and yet not more positions than LENGTH.
EVERYTHING = MemoryConfig(
    window=32, chunk_size=8, sinks=4, top_k=15, query_tokens=6, question_tokens=5, retrieve_every=1
)
SMALL = attrs.evolve(EVERYTHING, top_k=2, retrieve_every=3)

_SIX = [1.0, 1.1, 1.3, 1.6, 2.0, 2.5]  # a factor for each pair of the 12 dimensions
STEADY: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"factor": 8.0, "original_max_position_embeddings": 64},
}
PINNED: dict[str, dict[str, Any]] = {
    "dynamic": {"factor": 4.0},
    "longrope": {
        "factor": 4.0,
        "original_max_position_embeddings": LENGTH,
        "short_factor": _SIX,
        "long_factor": [3 * factor for factor in _SIX],
    },
}
TYPES = {**STEADY, **PINNED}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

every_case = pytest.mark.parametrize(
    ("rope", "attention", "dtype"),
    [(rope, attention, dtype) for rope in TYPES for attention in ("eager", "sdpa") for dtype in DTYPES],
)
pinned = pytest.mark.parametrize("rope", list(PINNED))


def oracle(name: str) -> pytest.MarkDecorator:
    return pytest.mark.oracle(name, table="scalings")


def make(rope: str, attention: str = "sdpa", dtype: str = "fp32", family: str = "llama") -> Any:
    parameters = {"rope_type": rope, "rope_theta": 10_000.0, **TYPES[rope]}
    if family == "gemma3_text":
        parameters = {"full_attention": parameters, "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}}
    model = tiny_model(family, attention=attention, max_position_embeddings=LENGTH, rope_parameters=parameters)
    return model.to(DTYPES[dtype])


def wrap(model: Any, config: MemoryConfig) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MemcoreWarning)
        return memcore.wrap(model, config)


@oracle("identity")
@every_case
@torch.no_grad()
def test_inside_the_window_logits_are_bit_identical(rope: str, attention: str, dtype: str) -> None:
    model = make(rope, attention, dtype)
    batch = padded_batch([36, 21], side="left", seed=1)
    expected = model(**batch).logits
    wrap(model, SMALL)
    assert torch.equal(model(**batch).logits, expected)


@oracle("full recall")
@every_case
@torch.no_grad()
def test_full_recall_equals_full_attention_up_to_the_length(rope: str, attention: str, dtype: str) -> None:
    model = make(rope, attention, dtype)
    batch = padded_batch([150, 97], side="left", seed=2)
    real = batch["attention_mask"].bool()
    expected = model(**batch).logits
    wrap(model, EVERYTHING)
    close(model(**batch).logits[real], expected[real])


@oracle("full recall")
@every_case
@torch.no_grad()
def test_full_recall_in_decode_equals_full_attention(rope: str, attention: str, dtype: str) -> None:
    model = make(rope, attention, dtype)
    tokens = random_tokens(2, 120, seed=3)

    def decode() -> torch.Tensor:
        output = model(tokens[:, :100], use_cache=True)
        logits = [output.logits[:, -1:]]
        for t in range(100, 120):
            output = model(tokens[:, t : t + 1], past_key_values=output.past_key_values)
            logits.append(output.logits)
        return torch.cat(logits, dim=1)

    expected = decode()
    wrap(model, EVERYTHING)
    close(decode(), expected)


@oracle("causality")
@every_case
@torch.no_grad()
def test_changing_later_tokens_changes_no_earlier_logit(rope: str, attention: str, dtype: str) -> None:
    model = wrap(make(rope, attention, dtype), SMALL)
    tokens = random_tokens(2, 100, seed=4)
    logits = model(tokens).logits
    for t in (35, 75, 97):
        changed = tokens.clone()
        changed[:, t + 1 :] = random_tokens(2, 100 - t - 1, seed=t)
        assert torch.equal(model(changed).logits[:, : t + 1], logits[:, : t + 1])


@oracle("rotation")
@every_case
@torch.no_grad()
def test_what_is_searched_is_what_the_projection_gave(rope: str, attention: str, dtype: str) -> None:
    # YaRN and LongRoPE scale keys as well as turning them.
    model = make(rope, attention, dtype)
    projected: list[torch.Tensor] = []
    model.model.layers[0].self_attn.k_proj.register_forward_hook(lambda _, __, output: projected.append(output))
    cache = model(random_tokens(1, 60, seed=5), use_cache=True).past_key_values
    wrap(model, SMALL)
    geometry = model.memory.layer_setups[0].geometry
    plain = unrotate(cache.layers[0].keys, torch.arange(60), geometry)
    expected = projected[0].float().unflatten(-1, (-1, 12)).transpose(1, 2)
    tolerance = 1e-4 if dtype == "fp32" else 4 * torch.finfo(torch.bfloat16).eps * float(expected.abs().max())
    torch.testing.assert_close(plain, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("rope", list(STEADY))
def test_exact_types_are_wrapped_without_a_word(rope: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memcore.wrap(make(rope), EVERYTHING)


@pytest.mark.parametrize(
    ("fields", "positions", "window", "top_k"),
    [
        ({}, 32_768, 2048, 32),
        ({}, 4096, 2048, 31),
        ({}, 2048, 1024, 15),
        ({}, 100, 128, 1),
        ({"segment": 200}, 300, 264, 1),
        ({"window": 1024}, 4096, 1024, 32),
        ({"chunk_size": 128}, 32_768, 2048, 16),
        ({"positions": "zero"}, 2048, 1024, 32),
        ({"top_k": 3}, 2048, 1024, 3),
    ],
)
def test_what_is_left_open_fits_the_positions_that_a_model_has(
    fields: dict[str, Any], positions: int, window: int, top_k: int
) -> None:
    plain = tiny_model("llama", max_position_embeddings=positions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if positions < 2048 else "error")
        model: Any = memcore.wrap(plain, **fields)
    assert (model.memory.config.window, model.memory.config.top_k) == (window, top_k)
    assert model.memory.config.span <= positions or positions < 2048


def test_it_is_said_that_chunks_would_stand_further_away_than_a_model_was_trained_for() -> None:
    with pytest.warns(MemcoreWarning, match=r"span 5036 positions, more than the 4096 that LlamaModel was trained for"):
        memcore.wrap(tiny_model("llama"), window=1000, sinks=4, chunk_size=64, segment=500, top_k=63, rerank=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memcore.wrap(tiny_model("llama"), window=1000, segment=500, top_k=63, positions="zero")
        memcore.wrap(tiny_model("gpt2"), window=1000, segment=500, top_k=63)  # its positions stay as they were


@pinned
def test_pinned_types_say_once_from_where_logits_differ(rope: str) -> None:
    with pytest.warns(MemcoreWarning, match=rf"'{rope}' of LlamaModel .* beyond {LENGTH} tokens") as caught:
        memcore.wrap(make(rope), SMALL)
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pinned
def test_a_configuration_that_spans_more_positions_is_refused(rope: str) -> None:
    model = make(rope)
    with pytest.raises(memcore.ConfigError, match=rf"span 164 positions.*'{rope}' are for {LENGTH} in this model"):
        memcore.wrap(model, attrs.evolve(EVERYTHING, top_k=16))
    assert not hasattr(model, "memory")


@pinned
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@torch.no_grad()
def test_frequencies_stay_put_with_memory_and_come_back_without(rope: str, family: str) -> None:
    short, long = random_tokens(1, 150, seed=6), random_tokens(1, 300, seed=7)
    expected = make(rope, family=family)(short).logits
    model = make(rope, family=family)
    model(long)  # leaves other frequencies behind
    rotary = model.get_decoder().rotary_emb
    before = repr(vars(rotary))
    left = {name: value.clone() for name, value in rotary.named_buffers()}
    twin = copy.deepcopy(model)
    wrap(model, EVERYTHING)
    close(model(short).logits, expected)
    model(long)
    close(model(short).logits, expected)
    memcore.unwrap(model)
    assert repr(vars(rotary)) == before
    for name, value in rotary.named_buffers():
        assert torch.equal(value, left[name])
    for text in (short, long):
        assert torch.equal(model(text).logits, twin(text).logits)


@pinned
@torch.no_grad()
def test_a_copy_is_pinned_and_freed_on_its_own(rope: str) -> None:
    model = wrap(make(rope), EVERYTHING)
    twin = copy.deepcopy(model)
    memcore.unwrap(model)
    long = random_tokens(1, 300, seed=8)
    plain = model(long).logits
    assert not torch.equal(twin(long).logits, plain)
    memcore.unwrap(twin)
    assert torch.equal(twin(long).logits, plain)


@torch.no_grad()
def test_a_part_of_each_head_with_long_rotation_as_in_phi3() -> None:
    factors = {"short_factor": [1.0, 1.2, 1.5], "long_factor": [2.0, 4.0, 6.0]}
    parameters = {"rope_type": "longrope", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5, **factors}
    model = tiny_model("phi3", original_max_position_embeddings=LENGTH, rope_parameters=parameters)
    tokens = random_tokens(1, 150, seed=9)
    expected, expected_long = model(tokens).logits, model(random_tokens(1, 300, seed=10)).logits
    wrap(model, EVERYTHING)
    close(model(tokens).logits, expected)
    assert not torch.allclose(model(random_tokens(1, 300, seed=10)).logits, expected_long, atol=1e-2)


def test_a_type_that_is_not_known_is_refused() -> None:
    parameters = {"rope_type": "proportional", "rope_theta": 10_000.0, "factor": 1.0, "partial_rotary_factor": 0.5}
    with pytest.raises(memcore.UnsupportedModelError, match=r"'proportional'.*supported: default, linear"):
        memcore.wrap(tiny_model("llama", rope_parameters=parameters), SMALL)
