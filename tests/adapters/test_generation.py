"""generate() and its neighbours on models with memory."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from tiny_models import FEW_FAMILIES, padded_batch, random_tokens, tiny_model
from transformers import AutoModel, DynamicCache, LlamaConfig
from transformers.generation import stopping_criteria

import memcore
from memcore import MemoryCache, MemoryConfig

SMALL = MemoryConfig(window=32, chunk_size=8, sinks=4, top_k=2, query_tokens=6, question_tokens=5, retrieve_every=3)
EVERYTHING = attrs.evolve(SMALL, top_k=10_000, positions="original", retrieve_every=1)

families = pytest.mark.parametrize("family", FEW_FAMILIES)


def generate(model: Any, batch: dict[str, torch.Tensor], **options: object) -> torch.Tensor:
    inputs = {name: value for name, value in batch.items() if name != "position_ids"}
    tokens = model.generate(**inputs, **{"max_new_tokens": 40, "do_sample": False, **options})
    assert isinstance(tokens, torch.Tensor)
    return tokens


@families
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}], ids=str)
def test_generate_with_full_recall_writes_what_the_plain_model_writes(family: str, options: dict[str, int]) -> None:
    model = tiny_model(family)
    batch = padded_batch([90, 41], side="left", seed=20)
    expected = generate(model, batch, **options)
    memcore.wrap(model, EVERYTHING)
    assert torch.equal(generate(model, batch, **options), expected)


@families
def test_the_length_that_a_model_was_trained_for_ends_no_text(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []
    monkeypatch.setattr(stopping_criteria.logger, "warning_once", warned.append)
    model, ids = tiny_model(family, max_position_embeddings=64), random_tokens(1, 70, seed=5)
    memcore.wrap(model, SMALL, window=16, top_k=2)
    for each in (model, copy.deepcopy(model)):
        assert each.generate(ids, do_sample=False).shape == (1, 90)
        assert each.generate(ids[:, :50], do_sample=False).shape == (1, 70)
        assert each.generate(ids, max_length=72, do_sample=False).shape == (1, 72)
    assert not warned
    memcore.unwrap(model)
    model.generate(ids, max_new_tokens=2, do_sample=False)
    assert warned
    with pytest.raises(ValueError, match="Input length"):
        model.generate(ids, do_sample=False)
    memcore.wrap(model, SMALL, window=16, top_k=2, positions="original")
    with pytest.raises(ValueError, match="Input length"):
        model.generate(ids, do_sample=False)


@families
def test_sampling_several_continuations_keeps_their_memories_apart(family: str) -> None:
    model = tiny_model(family)
    batch = {"input_ids": random_tokens(1, 80, seed=21)}
    options = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 60}
    torch.manual_seed(0)
    expected = generate(model, batch, **options)
    memcore.wrap(model, EVERYTHING)
    torch.manual_seed(0)
    assert torch.equal(generate(model, batch, **options), expected)


@families
def test_continued_generation_equals_generation_in_one_go(family: str) -> None:
    model = memcore.wrap(tiny_model(family), EVERYTHING)
    tokens = random_tokens(1, 80, seed=22)
    whole = model.generate(tokens, max_new_tokens=50, do_sample=False)
    half = model.generate(tokens, max_new_tokens=25, do_sample=False, return_dict_in_generate=True)
    assert isinstance(half.past_key_values, MemoryCache)
    rest = model.generate(half.sequences, past_key_values=half.past_key_values, max_new_tokens=25, do_sample=False)
    assert torch.equal(rest, whole)


@families
def test_one_reading_serves_many_questions(family: str) -> None:
    model = memcore.wrap(tiny_model(family), SMALL)
    text = random_tokens(1, 120, seed=23)
    with torch.no_grad():
        cache = model(text, use_cache=True).past_key_values
        answers = []
        for seed in (24, 25, 24):
            question = torch.cat((text, random_tokens(1, 7, seed=seed)), dim=1)
            copied = copy.deepcopy(cache)
            answers.append(model.generate(question, past_key_values=copied, max_new_tokens=20, do_sample=False))
        assert torch.equal(answers[0], answers[2])
        assert cache.get_seq_length() == 120


@families
def test_a_forward_in_parts_equals_a_forward_at_once(family: str) -> None:
    model = memcore.wrap(tiny_model(family), EVERYTHING)
    tokens = random_tokens(2, 150, seed=26)
    with torch.no_grad():
        whole = model(tokens).logits
        cache = model.memory.new_cache()
        logits = [model(part, past_key_values=cache).logits for part in tokens.split(37, dim=1)]
    torch.testing.assert_close(torch.cat(logits, dim=1), whole, atol=1e-4, rtol=0)


@families
def test_no_cache_and_embeddings_and_hidden_states_give_the_same(family: str) -> None:
    model = memcore.wrap(tiny_model(family), SMALL)
    tokens = random_tokens(2, 100, seed=27)
    with torch.no_grad():
        expected = model(tokens, output_hidden_states=True, use_cache=True)
        uncached = model(tokens, use_cache=False)
        embedded = model(inputs_embeds=model.get_input_embeddings()(tokens))
        last = model(tokens, logits_to_keep=1)
        as_tuple = model(tokens, return_dict=False)
    assert uncached.past_key_values is None
    assert torch.equal(uncached.logits, expected.logits)
    assert torch.equal(embedded.logits, expected.logits)
    assert torch.equal(as_tuple[0], expected.logits)
    torch.testing.assert_close(last.logits, expected.logits[:, -1:])
    assert [list(each.shape[:2]) for each in expected.hidden_states] == [[2, 100]] * len(expected.hidden_states)


@families
def test_assisted_generation_takes_back_rejected_tokens(family: str) -> None:
    model = tiny_model(family)
    batch = {"input_ids": random_tokens(1, 70, seed=28).repeat(1, 1)}
    options = {"prompt_lookup_num_tokens": 3}
    expected = generate(model, batch, **options)
    memcore.wrap(model, EVERYTHING)
    assert torch.equal(generate(model, batch, **options), expected)


@families
def test_the_cache_of_generate_is_adopted_and_its_chunks_go_with_it(family: str) -> None:
    model = memcore.wrap(tiny_model(family), SMALL)
    cache = DynamicCache(config=model.config)
    model.generate(random_tokens(2, 90, seed=29), past_key_values=cache, max_new_tokens=5, do_sample=False)
    assert isinstance(cache, MemoryCache)
    assert model.memory.bank.namespaces()
    del cache
    gc.collect()
    assert model.memory.bank.namespaces() == []
    assert model.memory.bank.nbytes() == 0


def test_capacity_bounds_what_is_kept() -> None:
    model = memcore.wrap(tiny_model("llama"), attrs.evolve(SMALL, capacity=40))
    with torch.no_grad():
        cache = model(random_tokens(1, 400, seed=30), use_cache=True).past_key_values
    counts = [model.memory.bank.count(name) for name in model.memory.bank.namespaces()]
    assert counts
    assert max(counts) <= 40 // SMALL.chunk_size
    assert cache.get_seq_length() == 400


def test_only_the_layers_asked_for_remember() -> None:
    model = memcore.wrap(tiny_model("llama"), attrs.evolve(SMALL, layers=(1,)))
    with torch.no_grad():
        cache = model(random_tokens(1, 100, seed=31), use_cache=True).past_key_values
    assert all(name.endswith("layer1") for name in model.memory.bank.namespaces())
    assert {layer for passage in model.memory.passages(cache) for layer in passage.layers} == {1}


def test_without_any_layer_to_read_the_model_streams() -> None:
    model = memcore.wrap(tiny_model("llama"), attrs.evolve(SMALL, layers=()))
    tokens = random_tokens(1, 100, seed=31)
    read: list[int] = []
    with torch.no_grad(), model.memory.reading(lambda done, _: read.append(done)):
        cache = model(tokens, use_cache=True).past_key_values
    assert model.memory.bank.namespaces() == []
    assert model.memory.passages(cache) == []
    assert cache.get_seq_length() == 100
    assert read == [36, 52, 68, 84, 100]  # and no question one token at a time: there is nothing to ask


def test_passages_say_what_was_read() -> None:
    model = memcore.wrap(tiny_model("llama"), SMALL)
    tokens = random_tokens(1, 100, seed=32)
    model.generate(tokens, max_new_tokens=1, do_sample=False)
    passages = model.memory.passages()
    assert passages
    for passage in passages:
        assert torch.equal(passage.token_ids, tokens[0, passage.start : passage.start + SMALL.chunk_size])


def test_progress_counts_up_to_the_whole_input() -> None:
    model = memcore.wrap(tiny_model("llama"), SMALL)
    calls: list[tuple[int, int]] = []
    with torch.no_grad(), model.memory.reading(lambda done, total: calls.append((done, total))):
        model(random_tokens(1, 100, seed=33))
    assert calls == sorted(calls)
    assert calls[0] == (36, 100)
    assert calls[-1] == (100, 100)


def test_an_interrupted_forward_leaves_a_cache_that_says_so() -> None:
    model = memcore.wrap(tiny_model("llama"), SMALL)
    cache = model.memory.new_cache()

    class StopHereError(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise StopHereError

    tokens = random_tokens(1, 100, seed=34)
    handle = model.get_decoder().layers[1].register_forward_pre_hook(interrupt)
    with torch.no_grad(), pytest.raises(StopHereError):
        model(tokens, past_key_values=cache)
    handle.remove()
    with pytest.raises(memcore.UnsupportedCacheError, match="did not finish"):
        model(tokens, past_key_values=cache)
    with torch.no_grad():
        model(tokens)


@families
def test_a_base_model_can_be_wrapped_as_well(family: str) -> None:
    base = tiny_model(family).base_model
    tokens = random_tokens(1, 100, seed=35)
    with torch.no_grad():
        expected = base(tokens).last_hidden_state
        memcore.wrap(base, EVERYTHING)
        torch.testing.assert_close(base(tokens).last_hidden_state, expected, atol=1e-4, rtol=0)
        memcore.unwrap(base)
        assert torch.equal(base(tokens).last_hidden_state, expected)


def test_a_copied_model_has_a_memory_of_its_own() -> None:
    model = memcore.wrap(tiny_model("llama"), SMALL)
    twin = copy.deepcopy(model)
    tokens = random_tokens(1, 100, seed=36)
    with torch.no_grad():
        assert torch.equal(twin(tokens).logits, model(tokens).logits)
        cache = twin(tokens, use_cache=True).past_key_values
    assert twin.memory is not model.memory
    assert model.memory.bank.namespaces() == []
    assert cache.memory is twin.memory


def test_wrapping_keeps_saving_and_loading(tmp_path: Path) -> None:
    model = memcore.wrap(tiny_model("llama"), SMALL)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    tokens = random_tokens(1, 30, seed=37)
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert loaded.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_and_stays_close(dtype: torch.dtype) -> None:
    model = tiny_model("llama").to(dtype)
    tokens = random_tokens(1, 120, seed=38)
    with torch.no_grad():
        expected = model(tokens).logits
        memcore.wrap(model, EVERYTHING)
        logits = model(tokens).logits
    assert logits.dtype == dtype
    # Kernels add up in another order for another mask; what is left is a few roundings of the dtype.
    torch.testing.assert_close(logits, expected, atol=32 * torch.finfo(dtype).eps * float(expected.abs().max()), rtol=0)


def test_the_base_class_of_auto_models_is_served_too() -> None:
    model = AutoModel.from_config(LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                                              num_attention_heads=2)).eval()  # fmt: skip
    with torch.no_grad():
        memcore.wrap(model, SMALL)
        assert model(torch.randint(3, 50, (1, 100))).last_hidden_state.shape == (1, 100, 32)
