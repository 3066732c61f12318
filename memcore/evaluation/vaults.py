"""Keys of many vaults hidden in one text, each of which is asked for after it: one reading, many answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import attrs
import torch
from torch import Tensor

from memcore.errors import EvaluationError
from memcore.evaluation.needles import KEY, NUMBERS, QUESTION
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
"""What can be hidden in one text: each differs from the others in both words, as many keys of one form would test the
choice among them, not memory."""


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


def with_keys(
    tokenizer: PreTrainedTokenizerBase, text: Sequence[int], depths: Sequence[float], seed: int
) -> tuple[Tensor, list[Hidden]]:
    """Hide a key at each depth, of a vault of its own, in place of the tokens that stood there.

    Sentences and questions are of the form that :func:`memcore.evaluation.needles.make_trial` has.

    Args:
        tokenizer: of the model.
        text: token ids, without special ones.
        depths: from 0 to 1, ascending; 10 at most.
        seed: which keys.

    Returns:
        ``[1, T]`` token ids, as many as before, the first one what begins a sequence; and what is hidden.

    Raises:
        EvaluationError: there are more depths than vaults, or the text has no room for what is to be hidden.
    """
    if len(depths) > len(VAULTS):
        raise EvaluationError(f"at most {len(VAULTS)} keys can be hidden in one text; got {len(depths)} depths")
    begin = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    ids = [*begin, *text][: len(text)]
    hidden, free = [], len(begin)
    for (what, name), depth in zip(VAULTS, depths, strict=False):
        key = str(random.Random(f"{seed + round(1000 * depth)} 1").choice(NUMBERS))
        needle = encode(tokenizer, KEY.format(what=what, name=name, key=key), special=False)[0].tolist()
        question = encode(tokenizer, QUESTION.format(what=what, name=name, now=""), special=False)
        place = len(begin) + int((len(ids) - len(begin) - len(needle)) * depth)
        if place < free:
            raise EvaluationError(
                f"{len(ids):,} tokens have no room for a sentence of {len(needle)} at each of the depths "
                f"{', '.join(f'{each:g}' for each in depths)}; give a longer text or fewer depths"
            )
        ids[place : place + len(needle)] = needle
        free = place + len(needle)
        hidden.append(Hidden(key=key, depth=depth, question=question))
    return torch.tensor([ids]), hidden
