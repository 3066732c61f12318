"""Long texts to read, and sentences with keys hidden in them that are asked for at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import torch
from torch import Tensor

from memcore.demo.text import language_reference
from memcore.evaluation.needles import make_trial
from memcore.files import read_text
from memcore.prompt import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VAULTS: Final = (
    ("access code", "green"),
    ("serial number", "red"),
    ("permit number", "blue"),
    ("invoice number", "yellow"),
    ("model number", "white"),
    ("batch number", "black"),
    ("order number", "silver"),
    ("repair number", "orange"),
    ("archive number", "purple"),
    ("delivery number", "brown"),
)
"""What can be hidden in one text, the first being what ``make_trial`` hides: each differs from the others in both
words, as many keys of one form would test the choice among them, not memory."""


@attrs.frozen(kw_only=True)
class Hidden:
    """A key in a text.

    Attributes:
        key: five digits.
        depth: where it stands, from 0 to 1.
        question: ``[1, Q]`` token ids that ask for it after the text.
    """

    key: str
    depth: float
    question: Tensor = attrs.field(eq=False)


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


def with_keys(
    tokenizer: PreTrainedTokenizerBase, text: Sequence[int], depths: Sequence[float], seed: int
) -> tuple[Tensor, list[Hidden]]:
    """Hide a key at each depth, of a vault of its own, in place of the tokens that stood there.

    Sentences and questions are those of ``memcore eval passkey``.

    Args:
        tokenizer: of the model.
        text: token ids, without special ones.
        depths: from 0 to 1, ascending; 10 at most.
        seed: which keys.

    Returns:
        ``[1, T]`` token ids, as many as before, the first one what begins a sequence; and what is hidden.
    """
    begin = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    ids = [*begin, *text][: len(text)]
    hidden = []
    (own_what, own_colour), *_ = VAULTS
    for (what, colour), depth in zip(VAULTS, depths, strict=False):
        # At depth 1 the question follows the sentence, so that the two can be told apart.
        trial = make_trial(tokenizer, text, tokens=len(text) // 2, depth=1, seed=seed + round(1000 * depth))
        first, last = trial.needle
        sentence, question = (
            encode(
                tokenizer,
                str(tokenizer.decode(part)).replace(own_what, what).replace(own_colour, colour),
                special=False,
            )
            for part in (trial.ids[0, first : last + 1], trial.ids[0, last + 1 :])
        )
        needle = sentence[0].tolist()
        place = len(begin) + int((len(ids) - len(begin) - len(needle)) * depth)
        ids[place : place + len(needle)] = needle
        hidden.append(Hidden(key=trial.key, depth=depth, question=question))
    return torch.tensor([ids]), hidden
