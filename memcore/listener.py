"""Hearing a reply while it is generated."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Hearing = Callable[[str], None]
"""Called with each piece of a reply as it is generated."""


class Listener(StoppingCriteria):
    """Hears a reply while it is generated: hands its text on, and says when it must end.

    Attributes:
        text: what was heard of it, without white space around it.
        came_to_a_stop: whether the reply came to one of ``stops``.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        begin: int,
        stops: Sequence[str],
        tell: Hearing | None,
        stopped: threading.Event,
        ends: set[int],
    ) -> None:
        """Listen from token ``begin`` on; the reply ends before the first of ``stops``, none of which is empty."""
        self._tokenizer = tokenizer
        self._begin = begin
        self._stops = stops
        self._tell = tell
        self._stopped = stopped
        self._ends = ends
        self._told = ""
        self.text = ""
        self.came_to_a_stop = False

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """Say for each row of ``input_ids``, ``[1, T]``, whether it is at its end."""
        self._hear(input_ids[0, self._begin :], final=False)
        over = self.came_to_a_stop or self._stopped.is_set()
        return torch.full((input_ids.shape[0],), over, device=input_ids.device, dtype=torch.bool)

    def end(self, token_ids: Tensor) -> None:
        """Hand on what was held back of the reply, ``[T]``."""
        self._hear(token_ids, final=True)

    def _hear(self, token_ids: Tensor, *, final: bool) -> None:
        text = str(self._tokenizer.decode(without_end(token_ids, self._ends), skip_special_tokens=True))
        found = [text.index(stop) for stop in self._stops if stop in text]
        if found:
            text, self.came_to_a_stop = text[: min(found)], True
        if not final:  # what may be half a character, or the beginning of a stop, waits until more is known
            text = text.rstrip("\ufffd")
            text = text[: len(text) - max((overlap(text, stop) for stop in self._stops), default=0)]
        self.text = text.strip()
        if self._tell is not None and self.text.startswith(self._told) and self.text != self._told:
            new, self._told = self.text[len(self._told) :], self.text
            self._tell(new)


def without_end(token_ids: Tensor, ends: set[int]) -> Tensor:
    """Leave out the token that ends a turn, which the transcript brings itself."""
    return token_ids[:-1] if len(token_ids) and int(token_ids[-1]) in ends else token_ids


def overlap(text: str, following: str) -> int:
    """Return how many characters at the end of ``text`` are the beginning of ``following``."""
    return next((n for n in range(min(len(text), len(following)), 0, -1) if text.endswith(following[:n])), 0)
