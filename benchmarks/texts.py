"""Texts to read that are as long as one likes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memcore.demo.text import language_reference
from memcore.files import read_text
from memcore.prompt import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def repeated(tokenizer: PreTrainedTokenizerBase, files: Sequence[Path], tokens: int) -> tuple[list[int], float]:
    """Return token ids of the files, one after the other, or of the Python language reference if there are none.

    A text that is too short is read again from its beginning.

    Args:
        tokenizer: of the model.
        files: UTF-8 texts.
        tokens: how many are wanted.

    Returns:
        That many token ids, none of them special, and how many times the text was read for them.
    """
    text = "\n\n".join(read_text(path) for path in files) if files else language_reference()
    ids: list[int] = encode(tokenizer, text, special=False)[0].tolist()
    return (ids * (tokens // len(ids) + 1))[:tokens], tokens / len(ids)
