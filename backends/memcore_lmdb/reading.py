"""Fetching chunks: one copy, from the map straight into the tensors that are returned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from memcore.chunk import ChunkBatch
from memcore_lmdb.blocks import ID, ROW, damaged_entries, read_vectors
from memcore_lmdb.checks import Checks
from memcore_lmdb.format import PAYLOAD, id_key
from memcore_lmdb.namespace import Namespace
from memcore_lmdb.payload import raise_damaged


def read_chunks(txn: Any, namespace: Namespace, ids: Tensor, checks: Checks) -> ChunkBatch:
    """Return the chunks with these ids, in this order, repeats allowed.

    Args:
        txn: to read from.
        namespace: as it is in this transaction.
        ids: ``[N]`` int64.
        checks: which checksums to compare.

    Raises:
        ChunkShapeError: ``ids`` is something else.
        UnknownChunkError: an id is not stored.
        CorruptedError: a chunk is damaged.
    """
    rows = namespace.rows(ids)
    wanted: list[int] = ids.tolist()
    number, layout = namespace.record.number, namespace.layout
    committed = [id for id in wanted if id < namespace.record.next_id]
    due = checks.due(number, committed)

    values: dict[int, memoryview] = {}
    for key, value in txn.cursor().getmulti([id_key(PAYLOAD, number, id) for id in committed]):
        values[int.from_bytes(key[9:], "big")] = value
    for id in committed:
        problem = "the payload is missing"
        if id in values:
            problem = layout.problem(values[id], checksum=id in due)
        raise_damaged(namespace.record.name, id, problem)
    payloads = [values[id] if id in values else namespace.staged.payloads[id] for id in wanted]

    embeddings = _read_embeddings(txn, namespace, wanted, rows, due)
    batch = layout.decode(payloads, embeddings, namespace.width)
    checks.passed(number, due)
    return batch


def _read_embeddings(txn: Any, namespace: Namespace, wanted: list[int], rows: Tensor, due: set[int]) -> Tensor:
    shape = namespace.record.shape
    embeddings = torch.empty(len(wanted), shape.vectors, shape.size)
    first = 0
    for block in namespace.blocks:
        places = ((rows >= first) & (rows < first + len(block))).nonzero().flatten()
        if len(places):
            entries = block.entries[rows[places] - first]
            vectors = read_vectors(txn, namespace.record.number, block, shape, namespace.where)
            embeddings[places] = vectors[entries[:, ROW]]
            unchecked = [place for place, id in enumerate(entries[:, ID].tolist()) if id in due and not block.checked]
            if unchecked:
                for id in damaged_entries(vectors, entries[unchecked]):
                    raise_damaged(namespace.record.name, id, "the checksum of the embeddings does not match")
        first += len(block)
    staged = (rows >= first).nonzero().flatten()
    if len(staged):
        embeddings[staged] = namespace.staged.vectors([wanted[place] for place in staged.tolist()])
    return embeddings
