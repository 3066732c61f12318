"""What a user gets wrong in the first hour: one clear error, or the right thing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import random_tokens, tiny_model
from transformers import (
    DynamicCache,
    StaticCache,
    T5Config,
    T5ForConditionalGeneration,
)

import memcore
from memcore import MemoryConfig

SMALL = MemoryConfig(window=32, chunk_size=8, sinks=4, top_k=2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"backend": "exakt"}, r"no backend 'exakt', did you mean 'exact'\?.*available:.*exact"),
        ({"embedder": "subblok"}, r"no embedder 'subblok', did you mean 'subblock'"),
        ({"eviction": "newest"}, r"available: fifo, lfu, lru, memlong"),
        (
            {"eviction_options": {"keep_newest": 2.0}},
            r"^eviction_options of 'memlong': 'keep_newest' must be <= 1.0: 2\.0",
        ),
        ({"eviction": "lru", "eviction_options": {"target": 0.5}}, "eviction_options of 'lru': unknown field 'target'"),
        ({"window": "1024"}, r"window.*integer.*'1024'"),
        ({"window": 1024.0}, r"window.*integer.*1024.0"),
        ({"window": True}, r"window.*integer.*True"),
        ({"window": 32, "chunk_size": 64}, r"window \(32\).*chunk.*64"),
        ({"window": 64, "segment": 60}, r"segment \(60\).*window"),
        ({"top_k": 0}, r"top_k.*at least 1.*0"),
        ({"topk": 4}, r"'topk', did you mean 'top_k'"),
        ({"positions": "continual"}, r"positions.*'window', 'zero' or 'original'.*'continual'"),
        ({"memory_layer": 9}, r"memory_layer: \[9\].*those that can: \[0, 1\]"),
        ({"layers": [7]}, r"layers: \[7\].*those that can: \[0, 1\]"),
        ({"backend_options": {"devise": "cpu"}}, r"backend_options of 'exact'.*'devise', did you mean 'device'"),
        ({"embedder_options": {"block": "8"}}, r"embedder_options of 'subblock'.*block"),
        ({"capacity": 10}, r"capacity \(10\).*at least one chunk"),
    ],
)
def test_a_bad_configuration_is_named_and_the_model_left_alone(config: dict[str, Any], message: str) -> None:
    model = tiny_model("llama")
    with pytest.raises(memcore.ConfigError, match=message):
        memcore.wrap(model, config)
    assert not hasattr(model, "memory")
    assert model.config._attn_implementation == "sdpa"
    memcore.wrap(model, SMALL)


def test_an_encoder_decoder_is_refused() -> None:
    model = T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    with pytest.raises(memcore.UnsupportedModelError, match=r"encoder-decoder.*supported model types: .*llama"):
        memcore.wrap(model)


def test_something_that_is_no_model_is_refused() -> None:
    with pytest.raises(memcore.UnsupportedModelError, match=r"torch\.nn.*Linear"):
        memcore.wrap(torch.nn.Linear(2, 2))  # type: ignore[type-var]


def test_wrapping_twice_is_refused_and_the_memory_stays() -> None:
    model = memcore.wrap(tiny_model("llama"), SMALL)
    memory = model.memory
    for part in (model, model.get_decoder()):
        with pytest.raises(memcore.AlreadyWrappedError, match="unwrap"):
            memcore.wrap(part, SMALL)
    assert model.memory is memory
    model(random_tokens(1, 80, seed=40))


def test_unwrapping_a_plain_model_is_refused() -> None:
    with pytest.raises(memcore.NotWrappedError):
        memcore.unwrap(tiny_model("llama"))


def test_another_librarys_cache_is_refused() -> None:
    model = memcore.wrap(tiny_model("llama"), SMALL)
    tokens = random_tokens(1, 20, seed=41)
    with pytest.raises(memcore.UnsupportedCacheError, match=r"StaticCache.*empty DynamicCache"):
        model(tokens, past_key_values=StaticCache(config=model.config, max_cache_len=64))
    with pytest.raises(memcore.UnsupportedCacheError, match="tuple"):
        model(tokens, past_key_values=((torch.zeros(1), torch.zeros(1)),))
    with pytest.raises(memcore.UnsupportedCacheError, match="StaticCache"):
        model.generate(tokens, cache_implementation="static", max_new_tokens=2)
    with pytest.raises(memcore.UnsupportedCacheError, match="offloaded"):
        model(tokens, past_key_values=DynamicCache(config=model.config, offloading=True))


def test_a_cache_filled_without_memory_is_refused() -> None:
    tokens = random_tokens(1, 20, seed=42)
    plain = tiny_model("llama")
    filled = plain(tokens, use_cache=True).past_key_values
    memcore.wrap(plain, SMALL)
    with pytest.raises(memcore.UnsupportedCacheError, match="20 tokens that were fed without memory"):
        plain(tokens, past_key_values=filled)


def test_a_cache_of_another_wrapped_model_is_refused() -> None:
    first, second = (memcore.wrap(tiny_model("llama", seed=seed), SMALL) for seed in (0, 1))
    cache = first(random_tokens(1, 60, seed=43), use_cache=True).past_key_values
    with pytest.raises(memcore.UnsupportedCacheError, match="another wrapped model"):
        second(random_tokens(1, 1, seed=44), past_key_values=cache)


def test_a_memory_cache_in_an_unwrapped_model_is_refused() -> None:
    model = memcore.wrap(tiny_model("llama"), SMALL)
    cache = model(random_tokens(1, 60, seed=45), use_cache=True).past_key_values
    memcore.unwrap(model)
    with pytest.raises(memcore.UnsupportedCacheError, match="used outside of it"):
        model(random_tokens(1, 1, seed=46), past_key_values=cache)


def test_a_cache_of_another_batch_size_is_refused() -> None:
    model = memcore.wrap(tiny_model("llama"), SMALL)
    cache = model(random_tokens(2, 60, seed=47), use_cache=True).past_key_values
    with pytest.raises(memcore.UnsupportedCacheError, match="holds 2 sequences, the input has 3"):
        model(random_tokens(3, 1, seed=48), past_key_values=cache)


def test_masks_and_outputs_without_meaning_are_refused_once_the_window_is_exceeded() -> None:
    model = memcore.wrap(tiny_model("llama", attention="eager"), SMALL)
    tokens = random_tokens(1, 80, seed=49)
    square = torch.zeros(1, 1, 80, 80)
    with pytest.raises(memcore.UnsupportedInputError, match=r"attention_mask must be \[B, tokens\]"):
        model(tokens, attention_mask=square)
    with pytest.raises(memcore.UnsupportedInputError, match="output_attentions"):
        model(tokens, output_attentions=True)
    with pytest.raises(memcore.UnsupportedInputError, match="attention_mask must cover"):
        model(tokens, attention_mask=torch.ones(1, 30))
    with torch.no_grad():
        short = model(tokens[:, :20], output_attentions=True)
    assert short.attentions[0].shape == (1, 4, 20, 20)


def test_other_attention_implementations_are_refused() -> None:
    model = tiny_model("llama")
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(memcore.UnsupportedModelError, match=r"flash_attention_2.*'sdpa' or 'eager'"):
        memcore.wrap(model, SMALL)


@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_a_text_shorter_than_a_chunk_is_generated_from_as_by_the_plain_model(tokens: int) -> None:
    model, ids = tiny_model("llama"), random_tokens(1, tokens, seed=50)
    expected = model.generate(ids, max_new_tokens=10, do_sample=False)
    memcore.wrap(model, SMALL)
    assert torch.equal(model.generate(ids, max_new_tokens=10, do_sample=False), expected)


def test_an_empty_text_does_what_the_plain_model_does() -> None:
    model = tiny_model("llama")
    empty = torch.zeros(1, 0, dtype=torch.long)
    outcomes = []
    for wrapped in (False, True):
        if wrapped:
            memcore.wrap(model, SMALL)
        try:
            outcomes.append(model(empty).logits.shape)
        except Exception as error:
            outcomes.append(type(error))
    assert outcomes[0] == outcomes[1]


def test_loading_a_configuration_that_is_no_configuration() -> None:
    with pytest.raises(memcore.ConfigError, match=r"\.toml, \.yaml or \.json"):
        memcore.wrap(tiny_model("llama"), 1024)  # type: ignore[arg-type]
