"""What the tests of the server serve: a tiny model that has read texts, one of which is full of markup."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from character_tokenizer import character_tokenizer
from tiny_models import tiny_model

import memcore
from memcore import Session

if TYPE_CHECKING:
    from memcore.serving.served_model import ServedModel

MARKUP = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
"""What a page that takes text for markup would run."""

CONFIG: dict[str, Any] = {"window": 64, "chunk_size": 8, "top_k": 6, "question_tokens": 8}


def long_text(characters: int = 700, seed: int = 0) -> str:
    """Return words of random letters."""
    letters = random.Random(seed)
    words = ("".join(letters.choices("abcdefghij", k=letters.randint(2, 8))) for _ in range(characters))
    return " ".join(words)[:characters]


def served(template: str | None = "default") -> ServedModel:
    """Return a model that has read the sessions ``book``, and one whose name and text are markup.

    Args:
        template: the chat template; None for none.
    """
    from memcore.serving.served_model import ServedModel

    tokenizer = character_tokenizer() if template == "default" else character_tokenizer(template)
    model = memcore.wrap(tiny_model("llama"), **CONFIG)
    Session(model, "book", tokenizer).ingest(long_text())
    Session(model, MARKUP, tokenizer).ingest(f"{MARKUP} " * 4)
    return ServedModel(model, tokenizer, "tiny")
