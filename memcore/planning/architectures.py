"""The shapes of some well-known models, for whoever has no network, or no access to a model's repository.

Written down by hand from what their makers published, and only as far as sizes depend on it. A model's own
``config.json`` is always to be preferred: a name that is a folder or a hub id is read from there.
"""

from __future__ import annotations

from typing import Any, Final

_LLAMA_3: Final[dict[str, Any]] = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}


def _longer_llama(factor: float) -> dict[str, Any]:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return {"max_position_embeddings": 131_072, "rope_parameters": rope}


ARCHITECTURES: Final[dict[str, dict[str, Any]]] = {
    "deepseek-v3": {"model_type": "deepseek_v3", "max_position_embeddings": 163_840},
    "gemma-3-270m": {
        "model_type": "gemma3_text",
        "vocab_size": 262_144,
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "sliding_window": 512,
        "max_position_embeddings": 32_768,
    },
    "gemma-3-1b": {
        "model_type": "gemma3_text",
        "vocab_size": 262_144,
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "num_hidden_layers": 26,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "sliding_window": 512,
        "max_position_embeddings": 32_768,
    },
    "gpt2": {"model_type": "gpt2", "dtype": "float32"},
    "gpt-oss-20b": {"model_type": "gpt_oss", "num_hidden_layers": 24, "num_local_experts": 32},
    "llama-3-8b": _LLAMA_3,
    "llama-3.1-8b": {**_LLAMA_3, **_longer_llama(8.0)},
    "llama-3.1-70b": {
        **_LLAMA_3,
        **_longer_llama(8.0),
        "hidden_size": 8192,
        "intermediate_size": 28_672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
    "llama-3.2-1b": {
        **_LLAMA_3,
        **_longer_llama(32.0),
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "mistral-7b": {
        "model_type": "mistral",
        "vocab_size": 32_768,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "sliding_window": None,
        "max_position_embeddings": 32_768,
    },
    "openllama-3b": {
        "model_type": "llama",
        "vocab_size": 32_000,
        "hidden_size": 3200,
        "intermediate_size": 8640,
        "num_hidden_layers": 26,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "dtype": "float16",
    },
    "phi-4": {
        "model_type": "phi3",
        "vocab_size": 100_352,
        "hidden_size": 5120,
        "intermediate_size": 17_920,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 10,
        "sliding_window": None,
        "max_position_embeddings": 16_384,
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": True,
    },
    "qwen2.5-7b": {
        "model_type": "qwen2",
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131_072,
    },
    "qwen3-8b": {
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40_960,
    },
    "smollm3-3b": {
        "model_type": "smollm3",
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 11_008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 65_536,
        "tie_word_embeddings": True,
    },
}
"""By name: the model type, fields that differ from transformers' defaults for it, and the dtype of the published
weights where that is not bfloat16."""
