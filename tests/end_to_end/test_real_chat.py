"""A chat with a real pretrained model, longer than its window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import memcore
from memcore import Chat, MemoryConfig
from memcore.demo.text import language_reference

pytestmark = pytest.mark.model

SAYINGS = [
    "What is the capital of France?",
    "My cat is called Moth. What is my cat called?",
    "By the way, the access code of the green vault is 48213. Remember it: the green vault opens with 48213.",
]


def test_facts_told_thousands_of_tokens_ago_are_answered_in_another_sitting(gemma: Any, tmp_path: Path) -> None:
    pytest.importorskip("lmdb", reason="lmdb is not installed")
    model, tokenizer = gemma
    config = MemoryConfig(window=256, chunk_size=32, backend="lmdb", backend_options={"path": tmp_path / "memory"})
    memcore.wrap(model, config)
    try:
        chat = Chat(model, tokenizer, "vault")
        for text in SAYINGS:
            chat.say(text, max_new_tokens=24)
        chat.read(" ".join(language_reference().split()[:1600]))
    finally:
        memcore.unwrap(model)
    memcore.wrap(model, config)
    try:
        chat = Chat(model, tokenizer, "vault")
        assert chat.tokens > 2000
        assert "48213" not in tokenizer.decode(chat.token_ids()[0, -1800:])
        answer = chat.say("Now tell me: what is the access code of the green vault?", max_new_tokens=16)
        assert "48213" in answer.text
        assert any("48213" in tokenizer.decode(passage.token_ids) for passage in answer.passages)
        assert "Moth" in chat.say("And what is my cat called?", max_new_tokens=16).text
    finally:
        memcore.unwrap(model)
