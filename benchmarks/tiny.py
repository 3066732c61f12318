"""A tiny model with random weights, for the small settings of benchmarks: what it reads takes moments.

It understands nothing, so no pass-key is found; everything else is as with a model that was trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

from memcore.demo.text import language_reference


def small_setting(folder: Path, *, characters: int) -> dict[str, Any]:
    """Return what the small settings of benchmarks have in common: the tiny model, a short text and a small window.

    Args:
        folder: for model and text, made if need be.
        characters: of the text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "text.txt"
    text.write_text(language_reference()[:characters], encoding="utf-8")
    return {"model": save_tiny_model(folder / "tiny-model"), "files": [text], "window": 128}


def save_tiny_model(folder: Path, *, seed: int = 0) -> str:
    """Write a model of two layers with sliding and two with global attention, and a tokenizer of single characters.

    Args:
        folder: where to write it; nothing is done if it is there already.
        seed: of its weights.

    Returns:
        The folder, as ``memcore.reader.load_model`` takes it.
    """
    if folder.exists():
        return str(folder)
    words = ["<pad>", "<bos>", "\n", *(chr(code) for code in range(32, 127))]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", padding_side="left"
    )
    config: Any = Gemma3TextConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        query_pre_attn_scalar=64,
        sliding_window=32,
        layer_types=["sliding_attention", "full_attention"] * 2,
        max_position_embeddings=8192,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    model = Gemma3ForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
