"""Comparison with every vector by faiss on the CPU: nothing is built, and of a table that is there nothing is copied.

Of one on a GPU (``payload_device="cuda"`` with ``device="cpu"``) every search copies all vectors to the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from memcore.approximate_index import first_distinct, score_chunks
from memcore.chunk import SearchResult
from memcore.exact_backend import exact_search
from memcore.in_memory import SearchIndex

if TYPE_CHECKING:
    from torch import Tensor

    from memcore.chunk_table import ChunkTable
    from memcore_faiss.engine import CpuEngine


class FlatIndex(SearchIndex):
    """Exact search on the CPU without an index, so there is nothing to train, to add to or to remove from.

    Args:
        engine: what calls faiss.
    """

    def __init__(self, engine: CpuEngine) -> None:
        self._engine = engine

    def search(self, table: ChunkTable, queries: Tensor, top_k: int) -> SearchResult:
        """Compare with every vector."""
        vectors = table.embeddings
        per_chunk = vectors.shape[1]
        products, places = self._engine.compare(vectors.flatten(0, 1), queries, (top_k - 1) * per_chunk + 1)
        if int(places.amin()) < 0:
            return exact_search(table, queries, top_k)  # products too large for float32
        if per_chunk == 1:
            return SearchResult(ids=table.ids.take(places), scores=products)
        ids = table.ids[first_distinct(places // per_chunk, top_k)]
        return score_chunks(table, queries, ids)

    def removed(self, ids: Tensor) -> None:
        """Do nothing."""

    def copy(self) -> Self:
        """Return itself, as it holds nothing."""
        return self
