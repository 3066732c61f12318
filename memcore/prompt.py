"""A long text and a question about it as a prompt: by the model's chat template, or one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from memcore.errors import UnsupportedInputError
from memcore.options import describe
from memcore.transcript import next_turn

if TYPE_CHECKING:
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
    """Return a text's token ids, ``[1, T]``, with those that begin a sequence if ``special``.

    Raises:
        UnsupportedInputError: the text has a lone surrogate, which is no character.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        lone = f"{text[error.start]!r} at {error.start:,}"
        raise UnsupportedInputError(f"the text has {lone}, half of a character, which UTF-8 has not") from error
    encoded: Any = tokenizer(text, add_special_tokens=special, return_tensors="pt", verbose=False)
    ids: Tensor = encoded["input_ids"]
    return ids


def given_ids(source: Tensor | Iterable[int]) -> Tensor:
    """Return token ids that a caller gives, ``[T]`` or ``[1, T]``, as ``[1, T]`` int64 on the CPU.

    Raises:
        UnsupportedInputError: they are none.
    """
    try:
        given = source if isinstance(source, Tensor) else list(source)
        ids = torch.as_tensor(given).cpu() if len(given) else torch.empty(0, dtype=torch.long)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UnsupportedInputError(f"expected a text, a path or token ids, got {describe(source)}") from error
    if (
        ids.is_floating_point()
        or ids.dtype == torch.bool
        or ids.ndim not in (1, 2)
        or (ids.ndim == 2 and len(ids) != 1)
    ):
        raise UnsupportedInputError(f"token ids must be integers, [T] or [1, T]; got {ids.dtype} {list(ids.shape)}")
    if not ids.numel():
        raise UnsupportedInputError("there is nothing to read: no token ids")
    return ids.long().view(1, -1)
