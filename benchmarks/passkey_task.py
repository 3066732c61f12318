"""The pass-key task: a number hidden in the Python language reference, asked for at the end."""

from __future__ import annotations

import random
from typing import Any

import attrs
import torch
from torch import Tensor

from memcore.demo.text import language_reference

NEEDLE = (
    "\n\nThe access code of the green vault is {key}. Remember it: the green vault opens with access code {key}.\n\n"
)
QUESTION = "\n\nQuestion: What is the access code of the green vault?\nAnswer: The access code of the green vault is"
ANSWER_TOKENS = 8


@attrs.frozen(kw_only=True)
class Trial:
    """One document with one pass-key.

    Attributes:
        seed: which part of the text and which key.
        depth: where the key stands, from 0 (the beginning) to 1.
        key: five digits.
        ids: ``[1, T]`` token ids, question included.
        needle: first and last token position of the sentence with the key.
    """

    seed: int
    depth: float
    key: str
    ids: Tensor
    needle: tuple[int, int]


def make_trial(tokenizer: Any, text: list[int], *, tokens: int, depth: float, seed: int) -> Trial:
    """Hide a key at a depth of a stretch of ``tokens`` tokens of the text (token ids); the same for the same seed."""

    def encode(part: str) -> list[int]:
        ids: list[int] = tokenizer(part, add_special_tokens=False)["input_ids"]
        return ids

    chance = random.Random(f"{seed} {depth}")
    key = str(chance.randrange(10_000, 100_000))
    begin = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    needle, question = encode(NEEDLE.format(key=key)), encode(QUESTION)
    length = tokens - len(begin) - len(needle) - len(question)
    start = chance.randrange(len(text) - length)
    body = text[start : start + length]
    cut = int(length * depth)
    ids = begin + body[:cut] + needle + body[cut:] + question
    return Trial(
        seed=seed,
        depth=depth,
        key=key,
        ids=torch.tensor([ids]),
        needle=(len(begin) + cut, len(begin) + cut + len(needle) - 1),
    )


def reference_tokens(tokenizer: Any) -> list[int]:
    """Return the language reference as token ids."""
    ids: list[int] = tokenizer(language_reference(), add_special_tokens=False)["input_ids"]
    return ids


@torch.no_grad()
def answer(model: Any, tokenizer: Any, trial: Trial, *, prefill_chunk_size: int | None = None) -> str:
    """Return what the model writes after the question. A plain model can read the prompt in pieces."""
    out = model.generate(
        trial.ids,
        attention_mask=torch.ones_like(trial.ids),
        max_new_tokens=ANSWER_TOKENS,
        do_sample=False,
        prefill_chunk_size=prefill_chunk_size,
        pad_token_id=tokenizer.pad_token_id or 0,
    )
    return str(tokenizer.decode(out[0, trial.ids.shape[1] :], skip_special_tokens=True))
