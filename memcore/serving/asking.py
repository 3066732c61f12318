"""A question about what was read, and for each token of the answer the passages that it rests on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from memcore.memory import Memory
from memcore.reader import Answer, Progress
from memcore.serving.one_at_a_time import StoppedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from memcore.trace import TokenTrace, Trace

_LEAST: Final = 0.001
"""Share of attention below which a passage is not listed for a token."""

_DIGITS: Final = 5
"""Digits of shares after the point."""


@attrs.frozen(kw_only=True)
class PassageShare:
    """How much of the attention a passage got.

    Attributes:
        start: position of its first token.
        share: from 0 to 1, the mean over the heads and the layers that read.
        layers: the share of each layer's attention, by its index.
    """

    start: int
    share: float
    layers: dict[str, float]


@attrs.frozen(kw_only=True)
class WrittenToken:
    """A token of an answer, and what it rests on.

    The three shares add up to 1, or to less where the model has learned sinks.

    Attributes:
        position: of the token.
        token_id: the token.
        token: as the vocabulary has it.
        text: what it adds to the answer; nothing if it is special, or ends in the middle of a character.
        memory: share of attention on all retrieved passages.
        sinks: share on the first tokens, kept for good.
        window: share on the local window.
        passages: those with a share of 0.1 % or more, the largest share first.
    """

    position: int
    token_id: int
    token: str
    text: str
    memory: float
    sinks: float
    window: float
    passages: tuple[PassageShare, ...]


@attrs.frozen(kw_only=True)
class Exchange:
    """A question and its answer.

    Attributes:
        question: what was asked.
        text: what was answered.
        seconds: how long that took.
        tokens: what was answered, token by token.
    """

    question: str
    text: str
    seconds: float
    tokens: tuple[WrittenToken, ...]


@contextmanager
def watching(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tell: Callable[[WrittenToken], None] = lambda _: None,
    progress: Progress | None = None,
    stopped: threading.Event | None = None,
) -> Iterator[Watch]:
    """Watch what each token of an answer rests on, while in this context.

    Example:
        >>> with watching(model, tokenizer) as watch:  # doctest: +SKIP
        ...     answer = session.ask(question, stopping_criteria=watch.criteria)
        >>> exchange = watch.exchange(question, answer)  # doctest: +SKIP

    Args:
        model: a wrapped model.
        tokenizer: its tokenizer.
        tell: called with each token when it is written.
        progress: told how far a long question is read.
        stopped: ends the answer after the token under way once it is set. While a question is read, StoppedError is
            raised then.
    """
    memory = model.memory
    assert isinstance(memory, Memory)
    stopped = stopped or threading.Event()
    under_way = memory.tracing
    with memory.reading(stoppable(progress, stopped)), nullcontext(under_way) if under_way else memory.trace() as trace:
        yield Watch(tokenizer, trace, tell, stopped)


def stoppable(progress: Callable[[int, int], None] | None, stopped: threading.Event) -> Callable[[int, int], None]:
    """Return what tells the progress of reading, and raises StoppedError in the middle of it once that is set."""

    def tell(done: int, total: int) -> None:
        if stopped.is_set():
            raise StoppedError("stopped while a question was read")
        if progress is not None:
            progress(done, total)

    return tell


class Watch(StoppingCriteria):
    """Takes down each token as it is written; made by :func:`watching`."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        trace: Trace,
        tell: Callable[[WrittenToken], None],
        stopped: threading.Event,
    ) -> None:
        self._tokenizer = tokenizer
        self._trace = trace
        self._tell = tell
        self._stopped = stopped
        self._begin: int | None = None
        self._told = 0
        self._written: list[WrittenToken] = []

    @property
    def criteria(self) -> StoppingCriteriaList:
        """What ``generate()`` is to be given as ``stopping_criteria``."""
        return StoppingCriteriaList([self])

    def exchange(self, question: str, answer: Answer) -> Exchange:
        """Return what was asked and answered, with all that was taken down."""
        return Exchange(question=question, text=answer.text, seconds=answer.seconds, tokens=tuple(self._written))

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """Take down the last of ``input_ids``, ``[1, T]``, and say whether it is to be the last of all."""
        position = input_ids.shape[1] - 1
        self._begin = position if self._begin is None else self._begin
        text = str(self._tokenizer.decode(input_ids[0, self._begin :], skip_special_tokens=True)).rstrip("\ufffd")
        piece, self._told = text[self._told :], max(self._told, len(text))
        traced = self._trace.latest()
        if traced is not None and traced.position != position:  # of something before: nothing has left the window
            traced = None
        token = _written(self._tokenizer, int(input_ids[0, -1]), position, piece, traced)
        self._written.append(token)
        self._tell(token)
        return torch.full((1,), self._stopped.is_set(), device=input_ids.device, dtype=torch.bool)


def _written(
    tokenizer: PreTrainedTokenizerBase, token_id: int, position: int, text: str, traced: TokenTrace | None
) -> WrittenToken:
    layers = () if traced is None else traced.layers
    by_layer: dict[int, dict[str, float]] = {}
    for chunk in () if traced is None else traced.chunks:
        by_layer.setdefault(chunk.start, {})[str(chunk.layer)] = round(chunk.share, _DIGITS)
    shares = {} if traced is None else traced.shares()

    def mean(which: str, otherwise: float = 0.0) -> float:
        return round(sum(getattr(each, which) for each in layers) / len(layers), _DIGITS) if layers else otherwise

    return WrittenToken(
        position=position,
        token_id=token_id,
        token=str(tokenizer.convert_ids_to_tokens(token_id)),
        text=text,
        memory=mean("memory"),
        sinks=mean("sinks"),
        window=mean("window", 1.0),
        passages=tuple(
            PassageShare(start=start, share=round(share, _DIGITS), layers=by_layer[start])
            for start, share in shares.items()
            if share >= _LEAST
        ),
    )
