"""Long documents as the rows of consecutive batches, so that each row's memory is of its own document."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from memcore.errors import TrainingError

BEGINS = "begins"
"""Name of the column that says whether a segment is the first of its document."""


class DocumentSegments(Dataset[dict[str, Tensor]]):
    """Documents cut into segments, in the order in which a trainer with ``rows`` rows must read them.

    ``rows`` documents are read side by side, one segment of each a batch, and all begin and end together: longer ones
    are cut to the shortest of their group, what is cut off being a document of its own if it is long enough. Groups
    are of documents of similar length, so little is lost; :attr:`tokens` says what is left.

    Read in order, never shuffled; the order of documents can be.

    Attributes:
        rows: documents side by side: the batch size.
        segment: tokens in a segment.
        tokens: in all segments.
    """

    def __init__(
        self, documents: Sequence[Sequence[int] | Tensor], *, rows: int, segment: int, seed: int | None = None
    ) -> None:
        """Cut documents into segments.

        Args:
            documents: token ids of each.
            rows: documents side by side.
            segment: tokens in a segment.
            seed: of the order of groups; None for longest first.

        Raises:
            TrainingError: there are fewer segments than rows.
        """
        if rows < 1 or segment < 2:
            raise TrainingError(f"rows must be at least 1 and segment at least 2 tokens, got {rows} and {segment}")
        self.rows, self.segment = rows, segment
        pieces = [torch.as_tensor(each).flatten().long() for each in documents]
        groups: list[list[Tensor]] = []
        # Longest first, and of the same length the one that came first.
        arrival = itertools.count()
        waiting = [(-len(each), next(arrival), each) for each in pieces if len(each) >= segment]
        heapq.heapify(waiting)
        while len(waiting) >= rows:
            group = [heapq.heappop(waiting)[2] for _ in range(rows)]
            length = len(group[-1]) // segment * segment
            groups.append([each[:length] for each in group])
            for rest in (each[length:] for each in group):
                if len(rest) >= segment:
                    heapq.heappush(waiting, (-len(rest), next(arrival), rest))
        if not groups:
            raise TrainingError(
                f"{len(pieces)} documents have {sum(len(each) // segment for each in pieces)} segments of {segment} "
                f"tokens, too few to be read {rows} at a time; give more text, or make rows or segment smaller"
            )
        if seed is not None:
            order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist()
            groups = [groups[index] for index in order]
        self._groups = groups
        self._places = [  # group, segment, row
            (index, step, row)
            for index, group in enumerate(groups)
            for step in range(len(group[0]) // segment)
            for row in range(rows)
        ]
        self.tokens = len(self._places) * segment

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return ``input_ids`` and ``labels``, ``[segment]`` int64, and whether the document begins here."""
        group, step, row = self._places[index]
        ids = self._groups[group][row][step * self.segment : (step + 1) * self.segment]
        return {"input_ids": ids, "labels": ids, BEGINS: torch.tensor(step == 0)}
