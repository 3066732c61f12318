"""Perplexity of long texts at given lengths of context, for several ways of reading side by side."""

from __future__ import annotations

import functools
import hashlib
import math
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import attrs
from torch import Tensor

from memcore.config import MemoryConfig
from memcore.errors import EvaluationError
from memcore.evaluation.losses import Span, cached_losses, windowed_losses
from memcore.evaluation.record import Record
from memcore.evaluation.ways import PIECE, WAYS, check_ways, memory_for, read_as
from memcore.reader import Progress

PERPLEXITY_WAYS: Final = {"chunks": "the plain model, one window after the other", **WAYS}
"""Ways of reading a text here. The window slides by half of itself."""

BLOCK: Final = 64
"""Scored tokens whose losses are kept as one mean."""


@attrs.frozen(kw_only=True)
class Perplexity:
    """Of one text, read in one way.

    Attributes:
        losses: mean negative log-likelihood, in nats a token, of the tokens scored at each length of context.
        blocks: the same of each :data:`BLOCK` tokens scored, in order: what two ways differ by varies less from block
            to block than either of them.
        tokens: how many were scored at each.
        read: tokens read.
        seconds: for reading and scoring.
    """

    losses: dict[int, float]
    blocks: dict[int, list[float]]
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


def result_name(text: str, way: str) -> str:
    """Return the name of one result."""
    return f"{text} / {way}"


@contextmanager
def _reading(model: Any, way: str, config: MemoryConfig) -> Iterator[Callable[..., Tensor]]:
    """Yield what gives the losses of a text read that way: a function of ids and spans, ``every`` and ``progress``."""
    memory_for(way, config, known=PERPLEXITY_WAYS)  # there is such a way
    strides = {"chunks": config.window_length, "window": config.window_length // 2}
    with read_as(model, "window" if way in strides else way, config):
        if way in strides:
            yield functools.partial(windowed_losses, model, window=config.window_length, stride=strides[way])
        else:
            yield functools.partial(cached_losses, model, piece=PIECE)


def perplexity(
    model: Any,
    ids: Tensor,
    way: str,
    *,
    config: MemoryConfig,
    contexts: Sequence[int],
    scored: int,
    every: int = 1,
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
        scored: length of what is scored at the end of each.
        every: 1 to score all of it, ``n`` for every ``n``-th token.
        progress: told how far it is.

    Raises:
        EvaluationError: the text is shorter than a context, or there is no such way.
    """
    spans = spans_for(contexts, scored)
    if ids.shape[1] < spans[-1][1]:
        raise EvaluationError(f"the text has {ids.shape[1]:,} tokens, fewer than the context of {spans[-1][1]:,}")
    begun = time.perf_counter()
    with _reading(model, way, config) as losses_of:
        losses = losses_of(ids, spans, every=every, progress=progress)
    at = {end: losses[begin:end:every] for begin, end in spans}
    return Perplexity(
        losses={end: float(each.mean()) for end, each in at.items()},
        blocks={end: [round(float(block.mean()), 5) for block in each.split(BLOCK)] for end, each in at.items()},
        tokens=len(range(0, scored, every)),
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
    every: int = 1,
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
        scored: length of what is scored at the end of each.
        every: 1 to score all of it, ``n`` for every ``n``-th token.
        record: where results go, as ``text / way``.
        progress: given what is read, returns what is told how far it is.

    Raises:
        EvaluationError: a result that is there is of another text of this name; or what is asked cannot be scored.
    """
    check_ways(ways, config, known=PERPLEXITY_WAYS)
    read = spans_for(contexts, scored)[-1][1]
    digests = {name: _digest(ids[:, :read]) for name, ids in texts.items()}
    left = []
    for name, digest in digests.items():
        for way in ways:
            found = record.results.get(result_name(name, way))
            if found is None:
                left.append((name, way))
            elif found.get("text", digest) != digest:  # there was none in it at first
                raise EvaluationError(
                    f"the results of {name!r} that are there are of another text of this name; give another folder"
                )
    for name, way in left:
        key = result_name(name, way)
        done = perplexity(
            model,
            texts[name],
            way,
            config=config,
            contexts=contexts,
            scored=scored,
            every=every,
            progress=progress(key) if progress is not None else None,
        )
        record.add(key, {**attrs.asdict(done), "text": digests[name]})


def _digest(ids: Tensor) -> str:
    return hashlib.sha256(ids.cpu().numpy().tobytes()).hexdigest()[:16]


def summary(
    results: dict[str, Any], ways: Sequence[str], texts: Collection[str] | None = None
) -> dict[str, dict[int, float]]:
    """Return the perplexity of each way at each context: of the mean loss over all texts, which count alike.

    Args:
        results: of a record.
        ways: of reading.
        texts: by name, each read in every way; None for all that a way has read.
    """
    table: dict[str, dict[int, float]] = {}
    for way in ways:
        names = _read_in(results, way) if texts is None else texts
        rows = [results[result_name(name, way)]["losses"] for name in names]
        contexts = sorted({int(context) for row in rows for context in row})
        by_context = {context: [{int(c): v for c, v in row.items()}[context] for row in rows] for context in contexts}
        table[way] = {context: math.exp(sum(losses) / len(losses)) for context, losses in by_context.items()}
    return table


def _read_in(results: dict[str, Any], way: str) -> list[str]:
    """Return the texts that were read in a way."""
    return [name for name, _, read_in in (key.rpartition(" / ") for key in results) if read_in == way]


def relative(results: dict[str, Any], way: str, to: str) -> dict[int, tuple[float, float]]:
    """Return how many times the perplexity of another way one way has, at each context, and the standard error of that.

    Only texts count that were read in both ways. Their difference is taken block by block, all blocks alike.

    Args:
        results: of a record.
        way: the way in question.
        to: the way that it is compared with.
    """
    both = [name for name in _read_in(results, way) if result_name(name, to) in results]
    pairs = [(results[result_name(name, way)], results[result_name(name, to)]) for name in both]
    differences: dict[int, list[float]] = {}
    for mine, theirs in pairs:
        for context, blocks in mine["blocks"].items():
            other = {int(key): value for key, value in theirs["blocks"].items()}[int(context)]
            differences.setdefault(int(context), []).extend(a - b for a, b in zip(blocks, other, strict=True))
    table = {}
    for context, each in sorted(differences.items()):
        ratio = math.exp(statistics.fmean(each))
        table[context] = (ratio, ratio * statistics.stdev(each) / math.sqrt(len(each)) if len(each) > 1 else math.nan)
    return table
