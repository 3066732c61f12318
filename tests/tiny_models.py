"""Tiny random models of every supported family. A new family is tested by adding one entry to ``FAMILIES``."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

VOCABULARY = 97

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    # Random weights attend almost evenly; larger ones make attention choose, so that what is missing shows.
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_SLIDING_AND_FULL: dict[str, Any] = {
    "num_hidden_layers": 4,
    "head_dim": 12,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
_EXPERTS: dict[str, Any] = {  # every token goes to all of them: a rounding must not send it to another one
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 32,
}

FAMILIES: dict[str, dict[str, Any]] = {  # config.model_type: what differs from _SHAPE
    "cohere": {"logit_scale": 1.0},
    "cohere2": {**_SLIDING_AND_FULL, "logit_scale": 1.0},
    "deepseek_v3": {
        **_EXPERTS,
        "num_key_value_heads": 4,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 12,
        "v_head_dim": 10,
        "first_k_dense_replace": 1,
        "n_group": 2,
        "topk_group": 2,
    },
    "gemma": {"head_dim": 12},
    "gemma2": {**_SLIDING_AND_FULL, "query_pre_attn_scalar": 12, "attn_logit_softcapping": 2.0},
    "gemma3_text": {**_SLIDING_AND_FULL, "query_pre_attn_scalar": 12},
    "gpt2": {},
    "gpt_neox": {"hidden_size": 64},  # a quarter of each head turns: an even number
    "gpt_oss": {**_SLIDING_AND_FULL, **_EXPERTS},
    "granite": {"attention_multiplier": 0.2},
    "llama": {},
    "mistral": {"sliding_window": None},
    "mixtral": {**_EXPERTS, "sliding_window": None},
    "olmo2": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 48},
    "phi": {},
    "phi3": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 12},
    "qwen3_moe": {**_EXPERTS, "head_dim": 12},
    "smollm3": {"no_rope_layers": [1, 0]},
    "stablelm": {"hidden_size": 64, "qk_layernorm": True},
    "starcoder2": {"sliding_window": None},
}

FEW_FAMILIES = ("llama", "qwen2", "gemma3_text")
"""For what does not depend on the family, or costs too much for all of them."""


def tiny_config(family: str, **changes: Any) -> PreTrainedConfig:
    """Return the configuration of a family's tiny model, with changes."""
    config = AutoConfig.for_model(family, **{**_SHAPE, **FAMILIES[family], **changes})
    assert isinstance(config, PreTrainedConfig)
    return config


def attentions(family: str) -> list[str]:
    """Return the attention implementations that transformers has for a family on a CPU, by name."""
    model_class: Any = AutoModelForCausalLM._model_mapping[type(tiny_config(family))]
    found = ["eager"]
    if model_class._supports_sdpa:
        found.append("sdpa")
    if model_class._supports_flex_attn and family != "gpt_oss":  # whose sinks it has on a GPU only
        found.append("flex_attention")
    return found


def tiny_model(family: str, *, attention: str = "", seed: int = 0, **changes: Any) -> Any:
    """Make the tiny model of a family, in evaluation mode, the same one for the same seed.

    Args:
        family: its ``model_type``.
        attention: the implementation; by default sdpa, or eager where the family has no other.
        seed: of its weights.
        **changes: to its configuration.
    """
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(tiny_config(family, **changes)).eval()
    if model._can_set_experts_implementation():
        # The others gather the tokens of an expert before they multiply, so that the last bits of a token's result
        # depend on how many others chose the same expert, later ones included.
        model.set_experts_implementation("batched_mm")
    model.set_attn_implementation(attention or ("sdpa" if "sdpa" in attentions(family) else "eager"))
    return model


def random_tokens(*shape: int, seed: int) -> torch.Tensor:
    """Return random token ids, none of them special."""
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def padded_batch(lengths: list[int], *, side: str, seed: int) -> dict[str, torch.Tensor]:
    """Return ``input_ids``, ``attention_mask`` and ``position_ids`` of rows of these lengths, padded on one side."""
    longest = max(lengths)
    ids = random_tokens(len(lengths), longest, seed=seed)
    column = torch.arange(longest)
    mask = torch.stack([column < n if side == "right" else column >= longest - n for n in lengths]).long()
    return {
        "input_ids": ids.masked_fill(mask == 0, 0),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
    }
