"""From what a layer asks to the chunks that it gets: search, vote, and a second look at the best."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
from torch import Tensor

from memcore.chunk import ChunkBatch, SearchResult
from memcore.selection import best_scored, pick, select_chunks
from memcore.shelves import fetch, search
from memcore.view import View


@attrs.frozen(eq=False, kw_only=True)
class Retrieved:
    """``M`` chunks to attend to, in document order: by ``chunks.starts``, the lower id first of equals.

    Attributes:
        ids: ``[M]`` int64 on the CPU.
        chunks: ``M`` chunks, where the backend keeps them.
    """

    ids: Tensor
    chunks: ChunkBatch

    def __len__(self) -> int:
        return len(self.chunks)


def recall(
    view: View, queries: Tensor, top_k: int, candidates: int, rescore: Callable[[ChunkBatch], Tensor] | None
) -> tuple[Tensor, ChunkBatch, SearchResult | None]:
    """Find and fetch the chunks of a view that these queries together want most.

    Args:
        view: at least one chunk.
        queries: ``[Q, E]`` float32.
        top_k: chunks wanted.
        candidates: ``top_k`` or more; see :meth:`memcore.MemoryBank.retrieve`, as for ``rescore``.
        rescore: gives better scores.

    Returns:
        Rows of the view, ``[M]`` int64, in document order; their chunks; and what the search found, None if there was
        no need for one.
    """
    result: SearchResult | None = None
    if len(view) <= (top_k if rescore is None else candidates):
        rows = torch.arange(len(view))
    else:
        result = view.memo.search(queries, min(candidates, len(view)), len(view), lambda new, k: search(view, new, k))
        rows = torch.searchsorted(view.ids, select_chunks(result, top_k if rescore is None else candidates))
    chunks = fetch(view, rows)
    order = torch.arange(len(rows))
    if rescore is not None and len(rows) > top_k:
        order = best_scored(rescore(chunks), rows, top_k)
    order = order[rows[order].argsort()]
    order = order[chunks.starts.cpu()[order].argsort(stable=True)]
    return rows[order], pick(chunks, order), result
