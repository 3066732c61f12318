from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from memcore.errors import UnsupportedInputError, UnsupportedModelError
from memcore.prompt import closing, encode, opening

TEMPLATE = (
    "{% for each in messages %}w1 {{ each.role }} {{ each.content }} w2 {% endfor %}"
    "{% if add_generation_prompt %}w3 w4{% endif %}"
)


@pytest.fixture
def tokenizer(tiny_folder: str) -> PreTrainedTokenizerBase:
    made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_folder)
    return made


@pytest.mark.parametrize("question", ["w9", "w3", "w2 w3 w4", " w4\n"])
@pytest.mark.parametrize("template", ["", TEMPLATE])
def test_text_and_question_make_the_whole_prompt(
    tokenizer: PreTrainedTokenizerBase, template: str, question: str
) -> None:
    """Also where the template goes on with the words of the question."""
    tokenizer.chat_template = template
    text = "w5 w6 w7"
    both = torch.cat((opening(tokenizer, text), closing(tokenizer, question)), dim=1)
    expected = f"{text} {question}"
    if template:
        messages = [{"role": "user", "content": expected}]
        expected = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    assert both[0].tolist() == tokenizer(expected)["input_ids"]


@pytest.mark.parametrize("template", ["", TEMPLATE])
def test_an_empty_question_is_refused(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(UnsupportedInputError, match="question is empty"):
        closing(tokenizer, " \n")


def test_a_template_without_what_the_user_says_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "w1"
    with pytest.raises(UnsupportedModelError, match="template"):
        opening(tokenizer, "w5")


def test_half_a_character_is_named_and_where_it_stands(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UnsupportedInputError, match=r"'\\ud800' at 3, half of a character"):
        encode(tokenizer, "w1 \ud800", special=False)
