"""What single families need, and what is refused: by whom, why, and with what advice."""

from __future__ import annotations

import copy
from typing import Any

import attrs
import pytest
import torch
import transformers
from memcore_adapters.plugin import FAMILIES as REGISTERED
from tiny_models import FAMILIES, attentions, padded_batch, random_tokens, tiny_config, tiny_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GenerationMixin,
    Mamba2Config,
    Mamba2ForCausalLM,
)

import memcore
from memcore import MemoryConfig

SMALL = MemoryConfig(window=32, chunk_size=8, sinks=4, top_k=2, query_tokens=6, question_tokens=5, retrieve_every=3)
EVERYTHING = attrs.evolve(SMALL, top_k=10_000, positions="original")

LEARNED = ["gpt2", "opt"]


def test_every_registered_family_is_tested() -> None:
    assert sorted(FAMILIES) == sorted(REGISTERED)


@pytest.mark.parametrize("family", ["bloom", "codegen", "falcon", "gpt_neo", "gptj", "mpt", "xglm"])
def test_attention_that_bypasses_the_registry_is_refused(family: str) -> None:
    shape = {"vocab_size": 50, "hidden_size": 16, "n_embd": 16, "d_model": 16, "num_hidden_layers": 2, "n_layer": 2}
    heads = {"num_attention_heads": 2, "n_head": 2, "n_heads": 2, "attention_heads": 2, "rotary_dim": 4, "ffn_dim": 16}
    own: dict[str, dict[str, Any]] = {
        "gpt_neo": {"num_layers": 2, "num_heads": 2, "attention_types": [[["global"], 2]]},
        "xglm": {"num_layers": 2},
        "codegen": {"n_head": 4, "num_attention_heads": 4},
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**shape, **heads, **own.get(family, {})}))
    if model._can_set_attn_implementation():
        pytest.skip(f"{family} uses the registry in transformers {transformers.__version__}")
    reason = rf"\({family}\): its attention bypasses the transformers attention registry.*cohere, .*llama"
    with pytest.raises(memcore.UnsupportedModelError, match=reason):
        memcore.wrap(model)


def test_an_unknown_family_is_refused_with_the_list_of_known_ones_and_where_to_read_on() -> None:
    heads: dict[str, Any] = {"num_heads": 4, "head_dim": 8, "state_size": 8, "n_groups": 1}
    model = Mamba2ForCausalLM(Mamba2Config(vocab_size=50, hidden_size=16, num_hidden_layers=1, **heads))
    with pytest.raises(memcore.UnsupportedModelError, match=r"mamba2.*docs/add-a-family\.md.*: cohere, .*llama"):
        memcore.wrap(model)


def test_a_model_of_text_and_images_is_refused_with_the_name_of_its_text_model() -> None:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=tiny_config("gemma3_text"), vision_config=vision, mm_tokens_per_image=4)
    with pytest.raises(memcore.UnsupportedModelError, match=r"gemma3.*for its text model \(gemma3_text\)"):
        memcore.wrap(Gemma3ForConditionalGeneration(config))


class HomemadeAttention(nn.Module):
    """What a subclass of a supported model may do."""

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(self, hidden_states: torch.Tensor, **_: object) -> tuple[torch.Tensor, None]:
        return hidden_states, None


def test_a_layer_that_does_not_use_the_registry_is_found_when_wrapping() -> None:
    model = tiny_model("llama")
    model.model.layers[1].self_attn = HomemadeAttention(1)
    with pytest.raises(memcore.UnsupportedModelError, match=r"LlamaModel bypasses the .*registry \(layers \[1\]\)"):
        memcore.wrap(model, SMALL)
    assert not hasattr(model, "memory")


def test_a_model_that_keeps_keywords_from_its_attention_is_found_at_the_first_long_text() -> None:
    model = tiny_model("llama")
    inner = model.model.layers[1].self_attn.forward
    model.model.layers[1].self_attn.forward = lambda memcore_cache, **kwargs: inner(**kwargs)
    memcore.wrap(model, SMALL)
    with torch.no_grad(), pytest.raises(memcore.UnsupportedModelError, match="layer 1 ran without its memory"):
        model(random_tokens(1, 100, seed=0))


@pytest.mark.parametrize("family", ["mistral", "mixtral", "phi3", "qwen3_moe", "starcoder2"])
def test_a_model_whose_every_layer_slides_is_refused_with_advice(family: str) -> None:
    model = tiny_model(family, sliding_window=16, use_sliding_window=True)
    with pytest.raises(memcore.UnsupportedModelError, match=r"last 16 tokens only.*load it with sliding_window=None"):
        memcore.wrap(model, SMALL)
    memcore.wrap(tiny_model(family, sliding_window=None), SMALL)


def test_sliding_layers_beside_global_ones_stay_what_they_are() -> None:
    model = memcore.wrap(tiny_model("qwen2", use_sliding_window=True, sliding_window=16, max_window_layers=1), SMALL)
    assert [setup.index for setup in model.memory.layer_setups] == [0]
    with torch.no_grad():
        cache = model(random_tokens(1, 100, seed=1), use_cache=True).past_key_values
    assert cache.layers[1].keys.shape[2] == 15


def test_attention_in_both_directions_is_refused() -> None:
    with pytest.raises(memcore.UnsupportedModelError, match="both directions"):
        memcore.wrap(tiny_model("gemma3_text", use_bidirectional_attention=True), SMALL)


@pytest.mark.parametrize("family", LEARNED)
@pytest.mark.parametrize("given", [True, False], ids=["position_ids", "none"])
@torch.no_grad()
def test_a_text_longer_than_the_position_table_is_refused_before_anything_is_done(family: str, given: bool) -> None:
    model = tiny_model(family, max_position_embeddings=100)
    batch = padded_batch([100, 60], side="left", seed=2)
    if not given:
        del batch["position_ids"]
    memcore.wrap(model, SMALL)
    cache = model(**batch, use_cache=True).past_key_values
    for name, value in batch.items():
        batch[name] = torch.cat((value, value[:, -1:] + (name == "position_ids")), dim=1)
    with pytest.raises(memcore.UnsupportedInputError, match=r"for 100 positions and the input needs 101"):
        model(**batch)
    following = {name: value[:, -1:] if name != "attention_mask" else value for name, value in batch.items()}
    with pytest.raises(memcore.UnsupportedInputError, match=r"for 100 positions and the input needs 101"):
        model(**following, past_key_values=cache)
    assert cache.get_seq_length() == 100
    with pytest.raises(memcore.UnsupportedInputError, match=r"for 100 positions"):
        model.generate(random_tokens(1, 90, seed=3), max_new_tokens=12, do_sample=False)


@pytest.mark.parametrize("family", LEARNED)
@torch.no_grad()
def test_learned_positions_stay_where_they_are_whatever_the_configuration_says(family: str) -> None:
    logits = []
    for positions in ("window", "original"):
        model = memcore.wrap(tiny_model(family), attrs.evolve(SMALL, positions=positions))
        logits.append(model(random_tokens(1, 140, seed=4)).logits)
    assert torch.equal(*logits)


@torch.no_grad()
def test_opt_counts_the_positions_of_real_tokens_only() -> None:
    model = memcore.wrap(tiny_model("opt", max_position_embeddings=100), SMALL)
    ids = random_tokens(1, 120, seed=5)
    model(ids, attention_mask=(torch.arange(120) >= 20)[None].long())
    with pytest.raises(memcore.UnsupportedInputError, match="needs 101"):
        model(ids, attention_mask=(torch.arange(120) >= 19)[None].long())


def test_opt_without_all_of_its_layers_is_refused() -> None:
    with pytest.raises(memcore.UnsupportedModelError, match=r"layerdrop=0.5"):
        memcore.wrap(tiny_model("opt", layerdrop=0.5), SMALL)


@torch.no_grad()
def test_gpt2_scales_by_layer_as_it_did() -> None:
    model = tiny_model("gpt2", scale_attn_by_inverse_layer_idx=True)
    tokens = random_tokens(1, 120, seed=6)
    expected = model(tokens).logits
    assert not torch.equal(expected, tiny_model("gpt2")(tokens).logits)
    memcore.wrap(model, EVERYTHING)
    torch.testing.assert_close(model(tokens).logits, expected, atol=1e-4, rtol=0)


def test_gpt2_attention_beside_the_registry_is_refused() -> None:
    with pytest.raises(memcore.UnsupportedModelError, match=r"reorder_and_upcast_attn.*'sdpa'"):
        memcore.wrap(tiny_model("gpt2", attention="eager", reorder_and_upcast_attn=True), SMALL)
    memcore.wrap(tiny_model("gpt2", attention="sdpa", reorder_and_upcast_attn=True), SMALL)
    with pytest.raises(memcore.UnsupportedModelError, match="cross-attention"):
        memcore.wrap(tiny_model("gpt2", add_cross_attention=True), SMALL)


@pytest.mark.parametrize("family", ["stablelm", "phi3", "gpt2"])
@torch.no_grad()
def test_a_copy_of_a_wrapped_model_has_all_that_its_family_needs(family: str) -> None:
    model = memcore.wrap(tiny_model(family), SMALL)
    twin = copy.deepcopy(model)
    tokens = random_tokens(1, 100, seed=7)
    assert torch.equal(twin(tokens).logits, model(tokens).logits)
    memcore.unwrap(twin)
    plain = tiny_model(family)(tokens).logits
    assert torch.equal(twin(tokens).logits, plain)
    assert not torch.equal(model(tokens).logits, plain)


def test_phi3_reads_a_growing_text_once() -> None:
    # Its own prepare_inputs_for_generation drops the cache when a text passes original_max_position_embeddings.
    model = tiny_model("phi3", original_max_position_embeddings=100)
    memcore.wrap(model, SMALL)
    lengths: list[int] = []
    model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    model.generate(random_tokens(1, 95, seed=8), max_new_tokens=12, do_sample=False)
    assert lengths == [95] + [1] * 11
    memcore.unwrap(model)
    assert type(model).prepare_inputs_for_generation is not GenerationMixin.prepare_inputs_for_generation
    assert model.prepare_inputs_for_generation.__func__ is type(model).prepare_inputs_for_generation


def test_layers_without_rotation_and_with_are_told_apart() -> None:
    model = memcore.wrap(tiny_model("smollm3"), SMALL)
    assert [setup.geometry is not None for setup in model.memory.layer_setups] == [True, False]


def test_where_positions_are_is_never_guessed() -> None:
    model = tiny_model("llama")
    del model.model.rotary_emb
    with pytest.raises(memcore.UnsupportedModelError, match=r"no rotary_emb.*geometry"):
        memcore.wrap(model, SMALL)


def test_families_without_sdpa_have_eager() -> None:
    assert [family for family in FAMILIES if "sdpa" not in attentions(family)] == ["gemma2", "gpt_oss"]


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 3}], ids=str)
def test_latent_attention_is_followed_past_the_window(options: dict[str, int]) -> None:
    # Until then its cache holds latents, and rows that are moved and tokens that are taken back are theirs.
    model = tiny_model("deepseek_v3")
    tokens = random_tokens(1, 20, seed=9)
    expected = model.generate(tokens, max_new_tokens=40, do_sample=False, **options)
    memcore.wrap(model, attrs.evolve(EVERYTHING, retrieve_every=1))
    assert torch.equal(model.generate(tokens, max_new_tokens=40, do_sample=False, **options), expected)


@pytest.mark.parametrize("how", ["copied", "stored"])
@torch.no_grad()
def test_a_cache_of_latents_can_be_kept(how: str) -> None:
    model = memcore.wrap(tiny_model("deepseek_v3"), SMALL)
    tokens = random_tokens(2, 120, seed=10)
    cache = model(tokens[:, :30], use_cache=True).past_key_values
    if how == "copied":
        kept = copy.deepcopy(cache)
    else:
        kept = memcore.MemoryCache.from_state(model.memory, cache.state(), ["one", "two"], torch.device("cpu"))
    logits = model(tokens[:, 30:], past_key_values=cache).logits
    assert torch.equal(model(tokens[:, 30:], past_key_values=kept).logits, logits)


@torch.no_grad()
def test_latent_attention_without_interleaved_weights_and_with_yarn() -> None:
    rope = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 8.0, "original_max_position_embeddings": 64}
    rope |= {"mscale": 1.0, "mscale_all_dim": 0.7}
    model = tiny_model("deepseek_v3", rope_interleave=False, q_lora_rank=None, rope_parameters=rope)
    assert model.model.rotary_emb.attention_scaling != 1
    batch = padded_batch([120, 70], side="left", seed=11)
    real = batch["attention_mask"].bool()
    expected = model(**batch).logits
    memcore.wrap(model, EVERYTHING)
    torch.testing.assert_close(model(**batch).logits[real], expected[real], atol=1e-4, rtol=0)
