"""Turns that were had elsewhere are laid out as a chat would have fed them."""

from __future__ import annotations

from typing import Any

import pytest
from character_tokenizer import TEMPLATE, character_tokenizer
from tiny_models import tiny_model

import memcore
from memcore import Chat
from memcore.turns import ends_of_turn, laid_out, stops_of, with_saying

SYSTEM = {"role": "system", "content": "Sys"}


def said(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]


def test_a_template_lays_out_what_it_lays_out_at_once() -> None:
    tokenizer = character_tokenizer()
    turns = said("One", "Yes", "Two", "No", "Three")
    text, after = laid_out(tokenizer, [SYSTEM], turns, begun=False)
    assert text == tokenizer.apply_chat_template([SYSTEM, *turns], tokenize=False, add_generation_prompt=True)
    assert after == [SYSTEM, *turns]


def test_without_a_template_it_is_a_transcript() -> None:
    text, _ = laid_out(character_tokenizer(None), [SYSTEM], said("One", " Yes ", "Two"), begun=False)
    assert text == "Sys\n\nUser: One\nAssistant: Yes\nUser: Two\nAssistant:"


@pytest.mark.parametrize("template", [TEMPLATE, None])
@pytest.mark.parametrize("text", ["", "A text that was read."])
def test_a_chat_has_fed_the_same(template: str | None, text: str) -> None:
    model, tokenizer = memcore.wrap(tiny_model("llama")), character_tokenizer(template)
    chat = Chat(model, tokenizer)
    if text:
        chat.read(text)
    before, fed = chat.messages, chat.tokens
    replies = [chat.say(each, max_new_tokens=1).text for each in ("One", "Two")]
    assert all(replies)  # white space around a reply is no part of its message
    laid, _ = laid_out(tokenizer, before, said("One", replies[0], "Two", replies[1], "Three"), begun=bool(fed))
    had = tokenizer.decode(chat.token_ids()[0, fed:])
    if template is None:  # a model that has learned to write puts the space there itself
        had = had.replace("Assistant:", "Assistant: ")
    assert laid.startswith(had)


def test_what_a_user_says_under_way_is_one_turn() -> None:
    assert with_saying(said("A"), "B") == said("A\n\nB")
    assert with_saying(said("A", "B"), "C") == said("A", "B", "C")


def test_a_reply_ends_by_the_template_or_where_the_transcript_goes_on() -> None:
    model: Any = tiny_model("llama")
    assert ends_of_turn(model, character_tokenizer(), said("A")) == {1}
    assert stops_of(character_tokenizer()) == ()
    assert stops_of(character_tokenizer(None)) == ("\nUser:",)
