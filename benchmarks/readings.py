"""A long text that is read a stretch at a time: by full attention, with a memory, or into a session on disk."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor
from transformers import DynamicCache

import memcore
from memcore.evaluation.ways import PIECE
from memcore.reader import Progress


class Reading(ABC):
    """A text that is being read.

    Attributes:
        done: tokens read.
    """

    done: int = 0

    def __init__(self, model: Any) -> None:
        """Take a model, wrapped if it shall have a memory."""
        self.model = model

    @abstractmethod
    def read(self, ids: Tensor, end: int, progress: Progress) -> None:
        """Read on in ``[1, T]`` token ids up to ``end``; ``progress`` is told how many tokens were read in all."""

    @abstractmethod
    def copy(self) -> Any:
        """Return ``past_key_values`` to go on with, which leaves the reading as it is."""


class Plain(Reading):
    """Full attention, in pieces."""

    def __init__(self, model: Any) -> None:
        """Take a model without memory."""
        super().__init__(model)
        self._cache = DynamicCache(config=model.config)

    def read(self, ids: Tensor, end: int, progress: Progress) -> None:
        """See :meth:`Reading.read`."""
        while self.done < end:
            piece = ids[:, self.done : min(end, self.done + PIECE)]
            self.model(input_ids=piece, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            self.done += piece.shape[1]
            progress(self.done, end)

    def copy(self) -> Any:
        """See :meth:`Reading.copy`."""
        return copy.deepcopy(self._cache)


class InMemory(Reading):
    """A memory, or a window with sinks, that goes with the process."""

    def __init__(self, model: Any) -> None:
        """Take a wrapped model."""
        super().__init__(model)
        self._cache = model.memory.new_cache()

    def read(self, ids: Tensor, end: int, progress: Progress) -> None:
        """See :meth:`Reading.read`."""
        begin = self.done
        with self.model.memory.reading(lambda done, _: progress(begin + done, end), question=False):
            self.model(input_ids=ids[:, begin:end], past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self.done = end
        progress(end, end)

    def copy(self) -> Any:
        """See :meth:`Reading.copy`."""
        return copy.deepcopy(self._cache)


class OnDisk(Reading):
    """A session on disk, which goes on where an earlier process stopped."""

    def __init__(self, model: Any) -> None:
        """Take a wrapped model."""
        super().__init__(model)
        self._session = memcore.Session(model, "long")
        self.done = self._session.tokens

    def read(self, ids: Tensor, end: int, progress: Progress) -> None:
        """See :meth:`Reading.read`."""
        left = self._session.info.unfinished
        begin = self.done - (0 if left is None else left.done)
        self._session.ingest(ids[0, begin:end], progress=lambda done, _: progress(begin + done, end))
        self.done = end

    def copy(self) -> Any:
        """See :meth:`Reading.copy`."""
        return self._session.cache()
