"""Exact search over blocks, which are scored where they lie in the map."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from memcore.chunk import NO_CHUNK, SearchResult
from memcore.errors import CorruptedError
from memcore.exact_backend import best_products
from memcore_lmdb.blocks import ID, ROW, Block, damaged_entries, read_vectors
from memcore_lmdb.checks import Checks
from memcore_lmdb.namespace import Namespace

_WAITING: Final = 1 << 20
"""Scores that may wait for the best of them to be chosen, 4 MB."""


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
            scores = best_products(vectors, queries)
            if len(block) < block.rows:
                scores = scores[:, block.entries[:, ROW]]
            best.add(block.entries[:, ID], scores)
        if len(namespace.staged):
            ids = torch.tensor(namespace.staged.ids, dtype=torch.int64)
            best.add(ids, best_products(namespace.staged.vectors(), queries))
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
        if self._waiting > _WAITING:
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
