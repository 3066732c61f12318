"""A long text and a question about it as a prompt: by the model's chat template, or one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcore.errors import UnsupportedInputError
from memcore.transcript import next_turn

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


def opening(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """Return what is read once, whatever the question: ``[1, T]`` token ids."""
    if not tokenizer.chat_template:
        return encode(tokenizer, text.rstrip() + "\n\n", special=True)
    return encode(tokenizer, f"{next_turn(tokenizer, []).before}{text.strip()}\n\n", special=False)


def closing(tokenizer: PreTrainedTokenizerBase, question: str) -> Tensor:
    """Return what is asked after that: ``[1, T]`` token ids.

    Raises:
        UnsupportedInputError: the question is empty.
    """
    if not question.strip():
        raise UnsupportedInputError("there is nothing to ask: the question is empty")
    if not tokenizer.chat_template:
        return encode(tokenizer, question, special=False)
    return encode(tokenizer, question.strip() + next_turn(tokenizer, []).after, special=False)


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> Tensor:
    """Return a text's token ids, ``[1, T]``, with those that begin a sequence if ``special``."""
    encoded: Any = tokenizer(text, add_special_tokens=special, return_tensors="pt", verbose=False)
    ids: Tensor = encoded["input_ids"]
    return ids
