"""The default backend: every vector compared, in memory. Exact, so the others are judged by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

import attrs
import torch
from torch import Tensor

from memcore.chunk import SearchResult
from memcore.in_memory import InMemoryBackend, SearchIndex

if TYPE_CHECKING:
    from memcore.chunk_table import ChunkTable

_BLOCK: Final = 1 << 20
"""Vector scores held at a time while searching: 4 MB, which stays in the cache, so it is also the fastest."""


def exact_search(table: ChunkTable, queries: Tensor, top_k: int) -> SearchResult:
    """Score every vector of every chunk and return the best chunks for each query.

    Args:
        table: ``N`` chunks with ``V`` vectors each, at least one.
        queries: ``[Q, E]`` float32 on the table's device.
        top_k: from 1 to ``N``.

    Returns:
        Ids on the CPU and scores on the table's device, ``[Q, top_k]``.
    """
    vectors = table.embeddings
    # Autocast would compute the products in half precision.
    with torch.autocast(vectors.device.type, enabled=False):
        scores = queries.new_empty(len(queries), len(table))
        step = max(1, _BLOCK // (len(queries) * vectors.shape[1]))
        for first in range(0, len(table), step):
            block = vectors[first : first + step]
            products = queries @ block.flatten(0, 1).T
            torch.amax(products.view(len(queries), *block.shape[:2]), dim=2, out=scores[:, first : first + step])
        best = scores.topk(top_k, dim=1)
    return SearchResult(ids=table.ids[best.indices.cpu()], scores=best.values)


class ExactIndex(SearchIndex):
    """No index at all: looks at every row."""

    def search(self, table: ChunkTable, queries: Tensor, top_k: int) -> SearchResult:
        """Search exactly: see :func:`exact_search`."""
        return exact_search(table, queries, top_k)

    def removed(self, ids: Tensor) -> None:
        """Do nothing."""

    def copy(self) -> Self:
        """Return itself, as it holds nothing."""
        return self


@attrs.frozen(kw_only=True)
class ExactOptions:
    """Options of the ``exact`` backend.

    Attributes:
        device: where chunks live and are searched, e.g. ``"cpu"`` or ``"cuda:0"``.
    """

    device: str = attrs.field(default="cpu", validator=attrs.validators.instance_of(str))


class ExactBackend(InMemoryBackend):
    """Searches by comparing the query with every vector of a namespace: no index, nothing approximate.

    Fetched chunks are on ``options.device``; everything else comes back on the CPU. Equal scores come in no
    particular order.

    Args:
        options: :class:`ExactOptions`.
    """

    Options = ExactOptions

    def __init__(self, options: object) -> None:
        device = options.device if isinstance(options, ExactOptions) else "cpu"
        super().__init__(options, device)

    def new_index(self) -> SearchIndex:
        """Return an :class:`ExactIndex`."""
        return ExactIndex()
