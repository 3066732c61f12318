"""Fails when transformers changes what memcore relies on, and says what to do; and is shown to fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
import transformers_contract as contract
from tiny_models import random_tokens, tiny_config, tiny_model
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers_contract import Call, ContractError

import memcore

PARAMETERS: list[tuple[Callable[..., Any], list[str], str]] = [
    (sdpa_attention_forward, ["module", "query", "key", "value", "attention_mask"], contract.INTERFACE),
    (AttentionInterface.register, ["key", "value"], contract.INTERFACE),
    (AttentionMaskInterface.register, ["key", "value"], contract.INTERFACE),
    (ALL_ATTENTION_FUNCTIONS.get_interface, ["attn_implementation", "default"], contract.DELEGATE),
    (DynamicLayer.update, ["key_states", "value_states"], contract.LAYER),
    (DynamicLayer.get_mask_sizes, ["query_length"], contract.LAYER),
    (DynamicLayer.get_seq_length, [], contract.LAYER),
    (DynamicLayer.crop, ["tokens_to_remove"], contract.LAYER),
    (DynamicLayer.batch_select_indices, ["indices"], contract.LAYER),
    (DynamicLayer.lazy_initialization, ["key_states", "value_states"], contract.LAYER),
    (DynamicLayer.reset, [], contract.LAYER),
    (Cache.update, ["key_states", "value_states", "layer_idx"], contract.CACHE),
    (Cache.get_mask_sizes, ["query_length", "layer_idx"], contract.CACHE),
    (Cache.get_seq_length, ["layer_idx"], contract.CACHE),
    (Cache.crop, ["tokens_to_remove"], contract.CACHE),
    (Cache.reorder_cache, ["beam_idx"], contract.CACHE),
    (Cache.batch_repeat_interleave, ["repeats"], contract.CACHE),
    (Cache.batch_select_indices, ["indices"], contract.CACHE),
    (Cache.reset, [], contract.CACHE),
]
KEYWORD = "memcore_canary_keyword"
IDS = random_tokens(2, 7, seed=1)


@pytest.fixture
def calls() -> Any:
    """Calls of a registered function by a llama that has 5 tokens in its cache and is fed 2, and its last logits."""
    model = tiny_model("llama")
    with torch.no_grad():
        expected = model(IDS).logits[:, 5:]
    made: list[Call] = []

    def spy(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> tuple[Tensor, None]:
        made.append(Call(module=module, query=query, key=key, value=value, mask=mask, kwargs=kwargs))
        groups = query.shape[1] // key.shape[1]
        key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
        logits = query @ key.transpose(2, 3) * kwargs["scaling"] + mask
        return (logits.softmax(dim=-1) @ value).transpose(1, 2).contiguous(), None

    AttentionInterface.register("memcore_canary_spy", spy)
    AttentionMaskInterface.register("memcore_canary_spy", eager_mask)
    model.set_attn_implementation("memcore_canary_spy")
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(IDS[:, :5], past_key_values=cache)
        made.clear()
        logits = model(IDS[:, 5:], past_key_values=cache, **{KEYWORD: 1}).logits
    return model, made, expected, logits


def rotated_keys(model: Any) -> Tensor:
    """Keys of the first layer of all tokens, computed apart: ``[B, H, T, D]``."""
    decoder = model.get_decoder()
    layer = decoder.layers[0]
    with torch.no_grad():
        hidden = decoder.embed_tokens(IDS)
        keys = layer.self_attn.k_proj(layer.input_layernorm(hidden)).view(2, 7, -1, 12).transpose(1, 2)
        cos, sin = decoder.rotary_emb(hidden, torch.arange(7)[None])
        rotated: Tensor = apply_rotary_pos_emb(keys, keys, cos, sin)[1]
    return rotated


@pytest.mark.parametrize(("function", "names", "where"), PARAMETERS, ids=lambda each: getattr(each, "__qualname__", ""))
def test_parameters(function: Callable[..., Any], names: list[str], where: str) -> None:
    contract.check_parameters(function, names, where, "adapt what overrides or calls it there")


def test_the_cache_goes_by_a_known_name() -> None:
    model = tiny_model("llama")
    for function in (model.forward, model.get_decoder().forward, model.prepare_inputs_for_generation):
        contract.check_cache_argument(function)


@pytest.mark.filterwarnings("error::FutureWarning")
def test_memcore_calls_nothing_by_a_name_that_is_to_go() -> None:
    session = memcore.Session(memcore.wrap(tiny_model("llama"), window=32, sinks=2, chunk_size=4), "text")
    session.ingest(random_tokens(1, 90, seed=1))
    session.ask(random_tokens(1, 6, seed=2), max_new_tokens=3)
    session.model(random_tokens(1, 90, seed=3), use_cache=False)


def test_registries() -> None:
    contract.check_registry(ALL_ATTENTION_FUNCTIONS, "memcore_canary")
    contract.check_registry(ALL_MASK_ATTENTION_FUNCTIONS, "memcore_canary")


def test_mask_functions() -> None:
    contract.check_mask_function(sdpa_mask, additive=False)
    contract.check_mask_function(eager_mask, additive=True)


def test_attention_functions(calls: Any) -> None:
    model, made, expected, logits = calls
    contract.check_layer_index(made, 2)
    contract.check_kwargs_reach(made[0], KEYWORD)
    contract.check_shapes(made[0], query=(2, 4, 2, 12), key=(2, 2, 7, 12))
    contract.check_rotated(made[0], rotated_keys(model))
    contract.check_output_layout(expected, logits)


def test_cache_layers() -> None:
    contract.check_layer(DynamicLayer)
    contract.check_recording_layer(lambda: DynamicSlidingWindowLayer(sliding_window=5))
    contract.check_cache(DynamicCache, tiny_config("gemma3_text"))


def test_generate_with_a_cache() -> None:
    model = tiny_model("llama")
    contract.check_generate(model.generate, model)


# From here on: something has changed, and the message says so.


def fails(what: str, check: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    with pytest.raises(ContractError, match=what) as caught:
        check(*args, **kwargs)
    message = str(caught.value)
    assert message.startswith("transformers 5.")
    assert "needed by: memcore/" in message or "needed by: adapters/" in message
    assert len(message.partition("what to do: ")[2]) > 20


def test_a_changed_signature_is_named() -> None:
    def update(self: Any, keys: Tensor, values: Tensor, cache_kwargs: dict[str, Any]) -> None: ...

    wanted = ["key_states", "value_states"]
    says = r"update takes \(keys, values, cache_kwargs\), no longer \(key_states, value_states, ...\)"
    fails(says, contract.check_parameters, update, wanted, contract.LAYER, "adapt MemoryLayer.update to it")


def test_a_renamed_cache_is_named() -> None:
    def forward(input_ids: Tensor, kv: Any = None) -> None: ...

    fails("neither past_key_values nor cache", contract.check_cache_argument, forward)


def test_a_changed_registry_is_named() -> None:
    class Forgetful(dict[str, Any]):
        @classmethod
        def register(cls, name: str, function: Any) -> None: ...

    class Wordy(Forgetful):
        @classmethod
        def register(cls, name: str, function: Any, device: str) -> None:  # type: ignore[override]
            ...

    fails("Forgetful.register.*KeyError", contract.check_registry, Forgetful(), "x")
    fails("Wordy.register.*missing 1 required", contract.check_registry, Wordy(), "x")


def test_a_changed_mask_function_is_named() -> None:
    def older(batch_size: int, cache_position: Tensor, kv_length: int, **kwargs: Any) -> None: ...

    fails("older is called otherwise now: .*cache_position", contract.check_mask_function, older, additive=False)
    fails("(?s)sdpa_mask gives .*True.*, no longer", contract.check_mask_function, sdpa_mask, additive=True)


def test_changed_calls_of_attention_functions_are_named(calls: Any) -> None:
    model, made, expected, logits = calls
    call = made[0]
    bare = attrs.evolve(call, kwargs={"scaling": 1.0})
    fails(r"no longer reaches registered attention functions; what does is \['scaling'\]",
          contract.check_kwargs_reach, bare, KEYWORD)  # fmt: skip
    fails(r"layer_idx = \[1, 0\]", contract.check_layer_index, made[::-1], 2)
    repeated = attrs.evolve(call, key=call.key.repeat_interleave(2, dim=1))
    fails("heads of keys not repeated", contract.check_shapes, repeated, query=(2, 4, 2, 12), key=(2, 2, 7, 12))
    plain = attrs.evolve(call, key=call.key.roll(1, dims=2))
    fails("no longer get keys as the model rotates them", contract.check_rotated, plain, rotated_keys(model))
    fails("no longer gives the model's logits", contract.check_output_layout, expected, logits.flip(-1))


def test_changed_cache_layers_are_named() -> None:
    class CropsTo(DynamicLayer):
        def crop(self, tokens_to_remove: int) -> None:
            super().crop(tokens_to_remove + 1)

    class NewOnly(DynamicLayer):
        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            super().update(key_states, value_states)
            return key_states, value_states

    class ByPosition(DynamicLayer):
        def get_mask_sizes(self, cache_position: Tensor) -> tuple[int, int]:  # type: ignore[override]
            return int(cache_position.shape[0]), 0

    class Unsliced(DynamicSlidingWindowLayer):
        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            keys, values = super().update(key_states, value_states)
            return torch.cat((keys, keys), dim=2), values

    fails("crop.-2. leaves 4 of 5 tokens", contract.check_layer, CropsTo)
    fails("update no longer returns all keys", contract.check_layer, NewOnly)
    fails("called otherwise now: 'int' object has no attribute 'shape'", contract.check_layer, ByPosition)
    fails("and announces 8", contract.check_recording_layer, lambda: Unsliced(sliding_window=5))


def test_a_changed_cache_is_named() -> None:
    config = tiny_config("gemma3_text")
    fails("layers fails: .*config", contract.check_cache, lambda: None, config)
    fails(r"has layers \[\] for", contract.check_cache, lambda config: DynamicCache(), config)


def test_a_generate_that_ignores_the_cache_is_named() -> None:
    model = tiny_model("llama")

    def forgetful(ids: Tensor, *, past_key_values: Any, **kwargs: Any) -> Any:
        return model.generate(ids, **kwargs)

    fails(r"fed pieces of \[12, 1, 1\] tokens.*left 8 tokens", contract.check_generate, forgetful, model)
