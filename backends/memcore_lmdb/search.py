"""Exact search over blocks, which are scored where they lie in the map."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from memcore.chunk import NO_CHUNK, SearchResult
from memcore.errors import CorruptedError
from memcore_lmdb.blocks import ID, ROW, Block, damaged_entries, read_vectors
from memcore_lmdb.checks import Checks
from memcore_lmdb.namespace import Namespace

_TILE: Final = 1 << 20
"""Scores held at a time: 4 MB, which stays in the cache."""


def search(txn: Any, namespace: Namespace, queries: Tensor, top_k: int, checks: Checks) -> SearchResult:
    """Compare every vector of every chunk with the queries.

    Args:
        txn: to read from.
        namespace: as it is in this transaction.
        queries: ``[Q, E]`` float32, at least one, finite.
        top_k: at least 1.
        checks: which checksums to compare.

    Returns:
        Ids and scores ``[Q, top_k]``, ``NO_CHUNK`` where there are fewer.

    Raises:
        CorruptedError: embeddings are damaged.
    """
    best = _Best(len(queries), top_k)
    # Autocast would compute the products in half precision.
    with torch.autocast("cpu", enabled=False):
        for block in namespace.blocks:
            if not len(block):
                continue
            vectors = read_vectors(txn, namespace.record.number, block, namespace.record.shape, namespace.where)
            if checks.block_due(block.checked):
                _check(vectors, block, namespace.where)
            scores = _score(vectors, queries)
            if len(block) < block.rows:
                scores = scores[:, block.entries[:, ROW]]
            best.add(block.entries[:, ID], scores)
        if len(namespace.staged):
            ids = torch.tensor(namespace.staged.ids, dtype=torch.int64)
            best.add(ids, _score(namespace.staged.vectors(), queries))
    return best.result()


def _check(vectors: Tensor, block: Block, where: str) -> None:
    """Compare the checksums of a block, and remember that they match."""
    damaged = damaged_entries(vectors, block.entries)
    if damaged:
        shown = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        raise CorruptedError(
            f"{where}, chunk {shown}: the checksum of the embeddings does not match, so nothing can be searched for "
            "here; evict it, or restore the memory from a copy"
        )
    block.checked = True


def _score(vectors: Tensor, queries: Tensor) -> Tensor:
    """Return the largest product of each query with any vector of each chunk.

    Args:
        vectors: ``[n, V, E]`` float32.
        queries: ``[Q, E]`` float32.

    Returns:
        ``[Q, n]`` float32.
    """
    scores = queries.new_empty(len(queries), len(vectors))
    step = max(1, _TILE // max(1, len(queries) * vectors.shape[1]))
    for first in range(0, len(vectors), step):
        part = vectors[first : first + step]
        products = (queries @ part.flatten(0, 1).T).view(len(queries), *part.shape[:2])
        torch.amax(products, dim=2, out=scores[:, first : first + step])
    return scores


class _Best:
    """The best chunks so far, for each of ``Q`` queries."""

    def __init__(self, queries: int, top_k: int) -> None:
        self._queries = queries
        self._top_k = top_k
        self._ids: list[Tensor] = [torch.full((queries, 0), NO_CHUNK)]
        self._scores: list[Tensor] = [torch.empty(queries, 0)]
        self._waiting = 0

    def add(self, ids: Tensor, scores: Tensor) -> None:
        """Add chunks ``[n]`` with their scores ``[Q, n]``."""
        self._ids.append(ids.expand(self._queries, -1))
        self._scores.append(scores)
        self._waiting += scores.numel()
        if self._waiting > _TILE:
            self._settle()

    def result(self) -> SearchResult:
        """Return the best, best first."""
        self._settle()
        ids, scores = self._ids[0], self._scores[0]
        missing = self._top_k - ids.shape[1]
        return SearchResult(
            ids=torch.nn.functional.pad(ids, (0, missing), value=NO_CHUNK),
            scores=torch.nn.functional.pad(scores, (0, missing), value=-torch.inf),
        )

    def _settle(self) -> None:
        ids, scores = torch.cat(self._ids, dim=1), torch.cat(self._scores, dim=1)
        best = scores.topk(min(self._top_k, scores.shape[1]), dim=1)
        self._ids, self._scores, self._waiting = [ids.gather(1, best.indices)], [best.values], 0
