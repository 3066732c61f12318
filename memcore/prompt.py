"""A long text and a question about it as a prompt: by the model's chat template, or one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from memcore.errors import UnsupportedInputError, UnsupportedModelError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_ANY: Final = "Question?"


def opening(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """Return what is read once, whatever the question: ``[1, T]`` token ids."""
    if not tokenizer.chat_template:
        return encode(tokenizer, text.rstrip() + "\n\n", special=True)
    return encode(tokenizer, _rendered(tokenizer, text)[0], special=False)


def closing(tokenizer: PreTrainedTokenizerBase, question: str) -> Tensor:
    """Return what is asked after that: ``[1, T]`` token ids.

    Raises:
        UnsupportedInputError: the question is empty.
    """
    if not question.strip():
        raise UnsupportedInputError("there is nothing to ask: the question is empty")
    if not tokenizer.chat_template:
        return encode(tokenizer, question, special=False)
    return encode(tokenizer, question.strip() + _rendered(tokenizer, "Text.")[1], special=False)


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> Tensor:
    """Return a text's token ids, ``[1, T]``, with those that begin a sequence if ``special``."""
    encoded: Any = tokenizer(text, add_special_tokens=special, return_tensors="pt", verbose=False)
    ids: Tensor = encoded["input_ids"]
    return ids


def _rendered(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[str, str]:
    """Return the chat template's prompt, up to the question and after it."""
    content = f"{text.strip()}\n\n{_ANY}"
    rendered = str(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
    )
    before, found, after = rendered.rpartition(_ANY)
    if not found:
        raise UnsupportedModelError("the chat template of the tokenizer leaves out what the user says")
    return before, after
