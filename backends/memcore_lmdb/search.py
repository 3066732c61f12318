"""Exact search over blocks, which are scored where they lie in the map."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from memcore.chunk import NO_CHUNK, SearchResult
from memcore.errors import CorruptedError
from memcore.products import BestProducts
from memcore_lmdb.blocks import ROW, Block, damaged_entries, read_vectors
from memcore_lmdb.checks import Checks
from memcore_lmdb.held_vectors import HeldVectors
from memcore_lmdb.namespace import Namespace

_WAITING: Final = 1 << 20
"""Scores that may wait for the best of them to be chosen, 4 MB."""


def search(
    txn: Any, namespace: Namespace, queries: Tensor, top_k: int, checks: Checks, held: HeldVectors
) -> SearchResult:
    """Compare every vector of every chunk with the queries.

    Args:
        txn: to read from.
        namespace: as it is in this transaction.
        queries: ``[Q, E]`` float32, at least one, finite.
        top_k: at least 1.
        checks: which checksums to compare.
        held: embeddings that need not be read.

    Returns:
        Ids and scores ``[Q, top_k]``, ``NO_CHUNK`` where there are fewer.

    Raises:
        CorruptedError: embeddings are damaged.
    """

    def read(block: Block) -> Tensor:
        vectors = read_vectors(txn, namespace.record.number, block, namespace.record.shape, namespace.where)
        if checks.block_due(block.checked):
            _check(vectors, block, namespace.where)
        return vectors

    best = _Best(top_k)
    products = BestProducts(queries, namespace.count * namespace.record.shape.vectors)
    rows = held.rows(namespace, read)
    if rows is not None:
        best.add(products(rows))
    else:
        for block in namespace.blocks:
            if len(block):
                scores = products(read(block))
                best.add(scores if len(block) == block.rows else scores[:, block.entries[:, ROW]])
    if len(namespace.staged):
        best.add(products(namespace.staged.vectors()))
    places, scores = best.result()
    ids = namespace.ids.take(places)
    missing = top_k - ids.shape[1]
    if missing:
        ids = torch.nn.functional.pad(ids, (0, missing), value=NO_CHUNK)
        scores = torch.nn.functional.pad(scores, (0, missing), value=-torch.inf)
    return SearchResult(ids=ids, scores=scores)


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
    """The best chunks so far, for each of ``Q`` queries, by their places in the order in which they were added."""

    def __init__(self, top_k: int) -> None:
        self._top_k = top_k
        self._waiting: list[Tensor] = []
        self._numbers = 0  # that wait
        self._added = 0  # chunks, without those that wait
        self._best: tuple[Tensor, Tensor] | None = None

    def add(self, scores: Tensor) -> None:
        """Add the next ``n`` chunks, by their scores ``[Q, n]``, at least one."""
        self._waiting.append(scores)
        self._numbers += scores.numel()
        if self._numbers > _WAITING:
            self._settle()

    def result(self) -> tuple[Tensor, Tensor]:
        """Return places and scores of the best, ``[Q, k]``, best first, after at least one was added."""
        if self._waiting:
            self._settle()
        assert self._best is not None
        return self._best

    def _settle(self) -> None:
        scores = torch.cat(self._waiting, dim=1) if len(self._waiting) > 1 else self._waiting[0]
        new = scores.topk(min(self._top_k, scores.shape[1]), dim=1)
        best = (new.indices + self._added if self._added else new.indices, new.values)
        if self._best is not None:
            places, values = (torch.cat(pair, dim=1) for pair in zip(self._best, best, strict=True))
            chosen = values.topk(min(self._top_k, values.shape[1]), dim=1)
            best = (places.gather(1, chosen.indices), chosen.values)
        self._best, self._added = best, self._added + scores.shape[1]
        self._waiting, self._numbers = [], 0
