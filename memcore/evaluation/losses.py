"""The loss of each token of a long text, for a model that reads it one way or another, strictly from left to right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from memcore.cache_argument import cache_argument
from memcore.errors import UnsupportedInputError
from memcore.reader import Progress
from memcore.schedule import pieces

if TYPE_CHECKING:
    from memcore.memory import Memory

Span = tuple[int, int]
"""Positions from the first to before the second."""

_ROWS: Final = 64
"""Logits turned to float32 at a time: vocabularies are large."""


def _check(ids: Tensor, spans: Sequence[Span], every: int) -> None:
    if every < 1:
        raise UnsupportedInputError(f"every must be at least 1, every token; got {every}")
    if ids.ndim != 2 or ids.shape[0] != 1:
        raise UnsupportedInputError(f"a text is [1, T] token ids, got {list(ids.shape)}")
    for begin, end in spans:
        if not 1 <= begin < end <= ids.shape[1]:
            raise UnsupportedInputError(
                f"tokens {begin} to {end} cannot be scored in a text of {ids.shape[1]} tokens: the first token has "
                "nothing before it"
            )


def _wanted(spans: Sequence[Span], tokens: int, every: int) -> Tensor:
    wanted = torch.zeros(tokens, dtype=torch.bool)
    for begin, end in spans:
        wanted[begin:end:every] = True
    return wanted


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log-likelihood, ``[n]`` float64 on the CPU, of ``[n]`` targets under ``[n, V]`` logits."""
    pairs = zip(logits.split(_ROWS), targets.split(_ROWS), strict=True)
    rows = [torch.nn.functional.cross_entropy(each.float(), target, reduction="none") for each, target in pairs]
    return torch.cat(rows).double().cpu() if rows else torch.zeros(0, dtype=torch.float64)


@torch.no_grad()
def cached_losses(
    model: Any, ids: Tensor, spans: Sequence[Span], *, piece: int, every: int = 1, progress: Progress | None = None
) -> Tensor:
    """Score a text that is read once, each piece after what the cache holds of those before.

    A wrapped model reads the pieces that it would make of the text itself, without a question at the end.

    Args:
        model: wrapped or not.
        ids: ``[1, T]`` token ids.
        spans: positions to score, from 1.
        piece: tokens that a model without memory reads at a time.
        every: 1 to score every token of a span, ``n`` for the first and each ``n``-th after it.
        progress: told how far it is.

    Returns:
        ``[T]`` float64, NaN where nothing is scored.
    """
    _check(ids, spans, every)
    memory: Memory | None = getattr(model, "memory", None)
    last = max(end for _, end in spans)
    losses, wanted = torch.full((ids.shape[1],), torch.nan, dtype=torch.float64), _wanted(spans, ids.shape[1], every)
    if memory is None:
        from transformers import DynamicCache

        cache: Any = DynamicCache(config=model.config)
        cut: Iterator[Span] = ((begin, min(begin + piece, last)) for begin in range(0, last, piece))
    else:
        config, cache = memory.config, memory.new_cache()
        room = config.room
        cut = pieces(last, 0, room=room, segment=config.segment_length, question_tokens=0)
    ids, name = ids.to(model.device), cache_argument(model.forward)
    with nullcontext() if memory is None else memory.reading(question=False):
        for begin, end in cut:
            # The logits at p are for the token at p + 1, and cost more than all else in a small model.
            rows = wanted[begin + 1 : end + 1].nonzero().flatten()
            keep = rows.to(ids.device) if len(rows) else 1
            options = {name: cache, "use_cache": True, "logits_to_keep": keep}
            logits = model(input_ids=ids[:, begin:end], **options).logits[0]
            if len(rows):
                places = begin + 1 + rows
                losses[places] = _loss(logits, ids[0, places.to(ids.device)].to(logits.device))
            if progress is not None:
                progress(end, last)
    return losses


@torch.no_grad()
def windowed_losses(
    model: Any,
    ids: Tensor,
    spans: Sequence[Span],
    *,
    window: int,
    stride: int,
    every: int = 1,
    progress: Progress | None = None,
) -> Tensor:
    """Score a text of which the model sees the last tokens only, read anew for each stride.

    With ``stride == window`` these are chunks that share but the one token from which the first of the next is
    predicted; with a smaller stride every token has at least ``window - stride`` tokens before it.

    Args:
        model: without memory.
        ids: ``[1, T]`` token ids.
        spans: positions to score, from 1.
        window: tokens it sees at a time.
        stride: tokens scored each time.
        every: as for :func:`cached_losses`.
        progress: told how far it is.

    Returns:
        ``[T]`` float64, NaN where nothing is scored.
    """
    _check(ids, spans, every)
    if not 1 <= stride <= window:
        raise UnsupportedInputError(f"stride must lie in 1..{window}, the window; got {stride}")
    losses, wanted = torch.full((ids.shape[1],), torch.nan, dtype=torch.float64), _wanted(spans, ids.shape[1], every)
    ids, last = ids.to(model.device), max(end for _, end in spans)
    for begin in range(0, last, stride):
        end = min(begin + stride, last)
        first = max(0, min(end - window, begin - 1))
        places = wanted[begin:end].nonzero().flatten() + begin
        if len(places):
            before = (places - 1 - first).to(ids.device)  # what predicts them
            logits = model(input_ids=ids[:, first:end], use_cache=False, logits_to_keep=before).logits[0]
            losses[places] = _loss(logits, ids[0, places.to(ids.device)].to(logits.device))
        if progress is not None:
            progress(end, last)
    return losses
