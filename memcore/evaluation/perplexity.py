"""Perplexity of long texts at given lengths of context, for several ways of reading side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import attrs
from torch import Tensor

from memcore.config import MemoryConfig
from memcore.errors import EvaluationError
from memcore.evaluation.losses import Progress, Span, cached_losses, windowed_losses
from memcore.evaluation.record import Record
from memcore.evaluation.ways import PIECE, WAYS, check_ways, memory_for, read_as

PERPLEXITY_WAYS: Final = {"chunks": "the plain model, one window after the other", **WAYS}
"""Ways of reading a text here. The window slides by half of itself."""


@attrs.frozen(kw_only=True)
class Perplexity:
    """Of one text, read in one way.

    Attributes:
        losses: mean negative log-likelihood, in nats a token, of the tokens scored at each length of context.
        tokens: how many were scored at each.
        read: tokens read.
        seconds: for reading and scoring.
    """

    losses: dict[int, float]
    tokens: int
    read: int
    seconds: float


def spans_for(contexts: Sequence[int], scored: int) -> list[Span]:
    """Return what is scored at each length of context: the last ``scored`` tokens before it.

    Raises:
        EvaluationError: a context is shorter than what is to be scored.
    """
    if not contexts or scored < 1 or min(contexts) <= scored:
        raise EvaluationError(
            f"every context must be longer than the {scored} tokens scored at its end; got {list(contexts)}"
        )
    return [(context - scored, context) for context in sorted(contexts)]


@contextmanager
def _reading(model: Any, way: str, config: MemoryConfig) -> Iterator[Callable[..., Tensor]]:
    """Yield what gives the losses of a text read that way: a function of ids, spans and progress."""
    memory_for(way, config, known=PERPLEXITY_WAYS)  # there is such a way
    strides = {"chunks": config.window, "window": config.window // 2}
    with read_as(model, "window" if way in strides else way, config):
        if way in strides:
            yield lambda ids, spans, progress: windowed_losses(
                model, ids, spans, window=config.window, stride=strides[way], progress=progress
            )
        else:
            yield lambda ids, spans, progress: cached_losses(model, ids, spans, piece=PIECE, progress=progress)


def perplexity(
    model: Any,
    ids: Tensor,
    way: str,
    *,
    config: MemoryConfig,
    contexts: Sequence[int],
    scored: int,
    progress: Progress | None = None,
) -> Perplexity:
    """Score one text, from its beginning, read in one way.

    One reading serves all contexts: the tokens scored at a length of context are the last ones before it, and none of
    them sees a token after itself.

    Args:
        model: wrapped or not, see :func:`memcore.evaluation.ways.read_as`.
        ids: ``[1, T]`` token ids, at least as many as the longest context.
        way: one of :data:`PERPLEXITY_WAYS`.
        config: the memory's; its window is that of every way that has one.
        contexts: lengths of context, in tokens.
        scored: tokens scored at the end of each.
        progress: told how far it is.

    Raises:
        EvaluationError: the text is shorter than a context, or there is no such way.
    """
    spans = spans_for(contexts, scored)
    if ids.shape[1] < spans[-1][1]:
        raise EvaluationError(f"the text has {ids.shape[1]:,} tokens, fewer than the context of {spans[-1][1]:,}")
    begun = time.perf_counter()
    with _reading(model, way, config) as losses_of:
        losses = losses_of(ids, spans, progress)
    return Perplexity(
        losses={end: float(losses[begin:end].mean()) for begin, end in spans},
        tokens=scored,
        read=spans[-1][1],
        seconds=time.perf_counter() - begun,
    )


def evaluate(
    model: Any,
    texts: dict[str, Tensor],
    ways: Sequence[str],
    *,
    config: MemoryConfig,
    contexts: Sequence[int],
    scored: int,
    record: Record,
    progress: Callable[[str], Progress] | None = None,
) -> None:
    """Score every text in every way, and keep each result in the record; what is there already is not done again.

    Args:
        model: wrapped or not, see :func:`memcore.evaluation.ways.read_as`.
        texts: token ids ``[1, T]`` by name.
        ways: see :data:`PERPLEXITY_WAYS`.
        config: the memory's.
        contexts: lengths of context, in tokens.
        scored: tokens scored at the end of each.
        record: where results go, as ``text / way``.
        progress: given what is read, returns what is told how far it is.
    """
    check_ways(ways, config, known=PERPLEXITY_WAYS)
    for name, ids in texts.items():
        for way in ways:
            key = f"{name} / {way}"
            if key not in record.results:
                done = perplexity(
                    model,
                    ids,
                    way,
                    config=config,
                    contexts=contexts,
                    scored=scored,
                    progress=progress(key) if progress is not None else None,
                )
                record.add(key, attrs.asdict(done))


def summary(results: dict[str, Any], ways: Sequence[str]) -> dict[str, dict[int, float]]:
    """Return the perplexity of each way at each context: of the mean loss over all texts, which count alike."""
    table: dict[str, dict[int, float]] = {}
    for way in ways:
        rows = [result["losses"] for key, result in results.items() if key.rpartition(" / ")[2] == way]
        contexts = sorted({int(context) for row in rows for context in row})
        by_context = {context: [{int(c): v for c, v in row.items()}[context] for row in rows] for context in contexts}
        table[way] = {context: math.exp(sum(losses) / len(losses)) for context, losses in by_context.items()}
    return table
