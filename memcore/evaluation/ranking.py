"""Answers ranked by their log-probability, after what a model has read."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from memcore.cache_argument import cache_argument
from memcore.prompt import encode
from memcore.transfer import input_device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_options(
    tokenizer: PreTrainedTokenizerBase, question: str, options: Sequence[str], *, between: str = " "
) -> tuple[Tensor, list[Tensor]]:
    """Return a question and the ways to go on from it, as they are encoded together.

    Where a token would reach from the question into an option, the question ends before it.

    Args:
        tokenizer: of the model.
        question: what all options follow.
        options: at least one, none of them empty.
        between: what stands between question and option.

    Returns:
        ``[1, T]`` token ids, and ``[1, T_i]`` for each option, at least one token each.
    """
    whole = [encode(tokenizer, f"{question}{between}{option}", special=False)[0] for option in options]
    shared = min(encode(tokenizer, question, special=False).shape[1], *(len(ids) - 1 for ids in whole))
    first = whole[0]
    for ids in whole[1:]:
        differ = (ids[:shared] != first[:shared]).nonzero()
        shared = int(differ[0]) if len(differ) else shared
    return first[None, :shared], [ids[None, shared:] for ids in whole]


@torch.no_grad()
def log_probabilities(model: Any, cache: Any, question: Tensor, options: Sequence[Tensor]) -> list[float]:
    """Return how likely each option is after a question: the sum of its tokens' log-probabilities.

    The question is read once for all options.

    Args:
        model: wrapped or not.
        cache: ``past_key_values`` with what was read before, which is used up.
        question: ``[1, T]`` token ids, at least one.
        options: ``[1, T_i]`` token ids, at least one each.
    """
    name, device = cache_argument(model.forward), input_device(model)
    first = model(input_ids=question.to(device), use_cache=True, logits_to_keep=1, **{name: cache}).logits[0]
    found = []
    for option in options:
        ids, logits = option.to(device), first
        if ids.shape[1] > 1:
            rest = model(input_ids=ids[:, :-1], use_cache=True, **{name: copy.deepcopy(cache)}).logits[0]
            logits = torch.cat([first, rest])
        rows = logits.float().log_softmax(dim=-1)
        found.append(float(rows.gather(1, ids.to(rows.device).view(-1, 1)).double().sum()))
    return found
