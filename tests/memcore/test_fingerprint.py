from __future__ import annotations

import copy

import torch
from tiny_models import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from memcore.fingerprint import model_fingerprint, tokenizer_fingerprint


def tokenizer(words: str) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words.split())}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]")


def test_the_same_model_has_the_same_fingerprint() -> None:
    model = tiny_model("llama")
    before = model_fingerprint(model)
    assert model_fingerprint(tiny_model("llama", attention="eager")) == before
    model.config._name_or_path = "elsewhere"
    assert model_fingerprint(copy.deepcopy(model)) == before


def test_the_last_value_of_a_large_weight_counts() -> None:
    model = tiny_model("llama")
    model.lm_head = torch.nn.Linear(1, 2**24 + 3, bias=False)  # more than float32 can number
    before = model_fingerprint(model)
    with torch.no_grad():
        model.lm_head.weight[-1] += 1
    assert model_fingerprint(model) != before


def test_other_weights_shapes_precisions_and_settings_differ() -> None:
    model = tiny_model("llama")
    prints = {model_fingerprint(model)}
    prints.add(model_fingerprint(tiny_model("llama", seed=1)))
    prints.add(model_fingerprint(tiny_model("qwen2")))
    prints.add(model_fingerprint(tiny_model("llama").to(torch.bfloat16)))
    model.config.rms_norm_eps = 1e-3
    prints.add(model_fingerprint(model))
    trained = tiny_model("llama")
    with torch.no_grad():
        trained.model.layers[1].mlp.up_proj.weight.add_(1e-3)
    prints.add(model_fingerprint(trained))
    assert len(prints) == 6


def test_a_tokenizer_is_known_by_its_words_not_by_its_last_call() -> None:
    one = tokenizer("[UNK] [PAD] a b")
    before = tokenizer_fingerprint(one)
    one(["a b", "a"], padding=True, truncation=True, max_length=1)
    assert tokenizer_fingerprint(one) == before
    assert tokenizer_fingerprint(tokenizer("[UNK] [PAD] b a")) != before
