"""Tiny random models of every supported family. A new family is tested by adding one entry to ``FAMILIES``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

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


def _gemma3() -> PreTrainedModel:
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    shape = {**_SHAPE, "num_hidden_layers": 4, "head_dim": 12, "query_pre_attn_scalar": 12}
    return Gemma3ForCausalLM(Gemma3TextConfig(**shape, sliding_window=16, layer_types=kinds))


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SHAPE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_SHAPE)),
    "gemma3": _gemma3,
}


def tiny_model(family: str, *, attention: str = "sdpa", seed: int = 0) -> Any:
    """Make the tiny model of a family, in evaluation mode, the same one for the same seed."""
    torch.manual_seed(seed)
    model = FAMILIES[family]().eval()
    model.set_attn_implementation(attention)
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
