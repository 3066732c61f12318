"""Pass-key prompts: sentences with numbers hidden in a long text, one of which is asked for at the end."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import attrs
import torch
from torch import Tensor

from memcore.errors import EvaluationError
from memcore.prompt import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEEDLES: Final = {
    "single": "one key",
    "several": "keys of several vaults, one of which is asked for",
    "distractors": "one key, among other numbers of the same vault in sentences of the same form",
    "update": "a key that is changed later; the later one counts",
}
"""What can be hidden."""

KEY: Final = "\n\nThe {what} of the {name} vault is {key}. Remember it: the {name} vault opens with {what} {key}.\n\n"
_OTHER: Final = "\n\nThe {what} of the {name} vault is {key}. Remember it: the {name} vault goes with {what} {key}.\n\n"
_CHANGED: Final = (
    "\n\nThe {what} of the {name} vault has been changed to {key}. Remember it: the {name} vault now opens with {what} "
    "{key}.\n\n"
)
QUESTION: Final = (
    "\n\nQuestion: What is the {what} of the {name} vault{now}?\nAnswer: The {what} of the {name} vault is{now}"
)

_WHAT: Final = "access code"
_NAME: Final = "green"
NUMBERS: Final = range(10_000, 100_000)
_NAMES: Final = ("red", "blue", "yellow", "white", "black", "silver", "orange", "purple", "brown", "golden", "grey")
_WHATS: Final = (
    "serial number",
    "insurance number",
    "invoice number",
    "inventory number",
    "repair number",
    "permit number",
    "order number",
    "batch number",
    "delivery number",
    "model number",
    "archive number",
)

MOST_OTHERS: Final = min(len(_NAMES), len(_WHATS))
"""Sentences that can stand beside the one asked for."""


@attrs.frozen(kw_only=True)
class Trial:
    """One prompt.

    Attributes:
        kind: one of :data:`NEEDLES`.
        seed: which part of the text and which keys.
        depth: where the sentence with the right key stands, from 0 (the beginning) to 1.
        key: the right one, five digits.
        others: the wrong ones that are hidden beside it.
        ids: ``[1, T]`` token ids, question included.
        needle: first and last token position of the sentence with the right key.
    """

    kind: str
    seed: int
    depth: float
    key: str
    others: tuple[str, ...]
    ids: Tensor = attrs.field(eq=False)
    needle: tuple[int, int]


def make_trial(
    tokenizer: PreTrainedTokenizerBase,
    text: Sequence[int],
    *,
    tokens: int,
    depth: float,
    seed: int,
    kind: str = "single",
    others: int = 3,
) -> Trial:
    """Hide a key at a depth of a stretch of a text; the same prompt for the same arguments.

    Args:
        tokenizer: of the model.
        text: token ids, without special ones.
        tokens: length of the prompt, all included.
        depth: from 0 to 1. What is hidden beside the key stands at depths by chance; what it replaces, before it.
        seed: which stretch of the text, and which keys.
        kind: one of :data:`NEEDLES`.
        others: how many wrong keys there are, for ``"several"`` and ``"distractors"``.

    Raises:
        EvaluationError: the text is shorter than the prompt, the prompt than what is to be hidden; or there is no such
            kind, depth or number.
    """
    if kind not in NEEDLES or not 0 <= depth <= 1 or not 1 <= others <= MOST_OTHERS:
        raise EvaluationError(
            f"needles are one of {', '.join(NEEDLES)}, at a depth from 0 to 1, beside 1 to {MOST_OTHERS} others; got "
            f"{kind!r}, {depth}, {others}"
        )
    chance = random.Random(f"{seed} {depth}")
    key = str(chance.choice(NUMBERS))
    begin = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    question = _ids(tokenizer, QUESTION.format(what=_WHAT, name=_NAME, now=" now" if kind == "update" else ""))
    hidden = _sentences(kind, key, others, depth, chance)
    needles = [(at, _ids(tokenizer, sentence), number) for at, sentence, number in hidden]
    length = tokens - len(begin) - len(question) - sum(len(needle) for _, needle, _ in needles)
    if length < 1:
        raise EvaluationError(
            f"{tokens} tokens hold no text beside what is hidden and asked; give at least {tokens - length + 1}"
        )
    check_length(text, length, tokens)
    start = chance.randrange(len(text) - length)
    ids, done, where = begin, start, (0, 0)
    for at, needle, number in needles:
        ids, done = [*ids, *text[done : start + int(length * at)]], start + int(length * at)
        if number == key:
            where = (len(ids), len(ids) + len(needle) - 1)
        ids += needle
    return Trial(
        kind=kind,
        seed=seed,
        depth=depth,
        key=key,
        others=tuple(number for _, _, number in needles if number != key),
        ids=torch.tensor([[*ids, *text[done : start + length], *question]]),
        needle=where,
    )


def check_length(text: Sequence[int], wanted: int, tokens: int) -> None:
    """See that a text is longer than what is wanted of it for a prompt of ``tokens``.

    Raises:
        EvaluationError: it is not.
    """
    if wanted >= len(text):
        raise EvaluationError(
            f"the text has {len(text):,} tokens, too few for a prompt of {tokens:,}: give a longer one, or "
            "several files, which are joined"
        )


def _sentences(kind: str, key: str, others: int, depth: float, chance: random.Random) -> list[tuple[float, str, str]]:
    """Return depth, sentence and number of all that is hidden, in that order."""
    right = (_CHANGED if kind == "update" else KEY).format(what=_WHAT, name=_NAME, key=key)
    if kind == "single":
        return [(depth, right, key)]
    wrong = [number for number in map(str, chance.sample(NUMBERS, others + 1)) if number != key][:others]
    if kind == "update":
        old = KEY.format(what=_WHAT, name=_NAME, key=wrong[0])
        return [(depth * chance.random(), old, wrong[0]), (depth, right, key)]
    if kind == "several":
        beside = [(KEY, _WHAT, name) for name in chance.sample(_NAMES, others)]
    else:
        beside = [(_OTHER, what, _NAME) for what in chance.sample(_WHATS, others)]
    hidden = [
        (chance.random(), pattern.format(what=what, name=name, key=number), number)
        for (pattern, what, name), number in zip(beside, wrong, strict=True)
    ]
    return sorted([*hidden, (depth, right, key)])


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = encode(tokenizer, text, special=False)[0].tolist()
    return ids
