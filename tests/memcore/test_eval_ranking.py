"""Options ranked by log-probability, against a forward over the whole of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from character_tokenizer import character_tokenizer
from tiny_models import random_tokens, tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import memcore
from memcore.evaluation.ranking import encode_options, log_probabilities
from memcore.reader import Reader

TEXT, QUESTION = random_tokens(1, 120, seed=1), random_tokens(1, 7, seed=2)
OPTIONS = [random_tokens(1, length, seed=3 + length) for length in (1, 2, 5)]


@torch.no_grad()
def expected(model: Any, option: Tensor) -> float:
    ids = torch.cat([TEXT, QUESTION, option], dim=1)
    rows = model(ids).logits[0].double().log_softmax(dim=-1)
    return sum(float(rows[place - 1, ids[0, place]]) for place in range(127, ids.shape[1]))


def test_an_option_scores_the_sum_of_its_tokens() -> None:
    model = tiny_model("llama")
    reader = Reader(model, character_tokenizer())
    reader.read(TEXT)
    want = pytest.approx([expected(model, option) for option in OPTIONS], abs=1e-4)
    assert log_probabilities(model, reader.cache(), QUESTION, OPTIONS) == want
    assert log_probabilities(model, reader.cache(), QUESTION, OPTIONS[::-1])[::-1] == want


def test_with_everything_recalled_memory_scores_as_full_attention() -> None:
    model = tiny_model("llama")
    want = [expected(model, option) for option in OPTIONS]
    memcore.wrap(model, window=32, chunk_size=8, top_k=1000, positions="original", question_tokens=4)
    reader = Reader(model, character_tokenizer())
    reader.read(TEXT)
    assert log_probabilities(model, reader.cache(), QUESTION, OPTIONS) == pytest.approx(want, abs=1e-3)
    few = memcore.wrap(memcore.unwrap(model), window=32, chunk_size=8, top_k=1)
    reader = Reader(few, character_tokenizer())
    reader.read(TEXT)
    assert log_probabilities(few, reader.cache(), QUESTION, OPTIONS) != pytest.approx(want, abs=1e-3)


@pytest.mark.parametrize("options", [["yes", "no"], ["good", "goods"], ["very good", "very bad"], ["one"]])
def test_question_and_options_are_what_is_encoded_together(options: list[str]) -> None:
    tokenizer = character_tokenizer()
    question, encoded = encode_options(tokenizer, "Is it?", options)
    whole = [tokenizer.decode(torch.cat([question, each], dim=1)[0]) for each in encoded]
    assert whole == [f"Is it? {option}" for option in options]
    assert tokenizer.decode(question[0]) == "Is it?"


def test_a_token_that_reaches_into_an_option_belongs_to_it() -> None:
    words = ["<pad>", "a", " ", ":", ": b"]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(": b", "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    question, (option,) = encode_options(tokenizer, "a:", ["b"])
    assert question.tolist() == [[1]]
    assert option.tolist() == [[4]]


def test_nothing_can_be_ranked_after_nothing() -> None:
    with pytest.raises(memcore.UnsupportedInputError, match="nothing was read yet"):
        Reader(tiny_model("llama"), character_tokenizer()).cache()
