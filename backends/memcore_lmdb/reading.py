"""Fetching chunks: one copy, from the map straight into the tensors that are returned."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from xxhash import xxh3_64_intdigest

from memcore.backend_checks import check_ids
from memcore.chunk import ChunkBatch
from memcore_lmdb.blocks import CHECKSUM, ROW, check_vectors
from memcore_lmdb.checks import Checks
from memcore_lmdb.format import PAYLOAD, VECTORS, id_key, number_key
from memcore_lmdb.namespace import Namespace
from memcore_lmdb.payload import Head, raise_damaged


def read_chunks(txn: Any, namespace: Namespace, ids: Tensor, checks: Checks) -> ChunkBatch:
    """Return the chunks with these ids, in this order, repeats allowed.

    Args:
        txn: to read from.
        namespace: as it is in this transaction.
        ids: ``[N]`` int64, on any device.
        checks: which checksums to compare.

    Raises:
        ChunkShapeError: ``ids`` is something else.
        UnknownChunkError: an id is not stored.
        CorruptedError: a chunk is damaged.
    """
    ids = check_ids(ids)  # and so on the CPU, where the rows are
    rows = namespace.rows(ids)
    wanted: list[int] = ids.tolist()
    # Staged chunks came after all others.
    staged_from = namespace.record.next_id
    committed = wanted
    if len(namespace.staged):
        committed = [id for id in wanted if id < staged_from]
        rows = rows[ids < staged_from]
    due = checks.due(namespace.record.number, committed)

    heads, payloads = _read_payloads(txn, namespace, committed, due)
    vectors = _read_vectors(txn, namespace, committed, rows, due)
    if len(committed) < len(wanted):
        staged, found = namespace.staged, iter(zip(payloads, vectors, strict=True))
        both = [next(found) if id < staged_from else (staged.payload(id), staged.vector(id)) for id in wanted]
        payloads, vectors = [payload for payload, _ in both], [vector for _, vector in both]
        heads = namespace.layout.heads(payloads)
    assert heads is not None
    batch = namespace.layout.decode(heads, payloads, vectors, namespace.width)
    checks.passed(namespace.record.number, due)
    return batch


def _read_payloads(
    txn: Any, namespace: Namespace, ids: list[int], due: set[int]
) -> tuple[list[Head] | None, list[memoryview]]:
    """Return the payloads of committed chunks and their heads, ``due`` being the ids to check."""
    number, layout, name = namespace.record.number, namespace.layout, namespace.record.name
    prefix = number_key(PAYLOAD, number)
    payloads = [txn.get(prefix + id.to_bytes(8, "big")) for id in ids]
    if None in payloads:
        raise_damaged(name, ids[payloads.index(None)], "its payload is missing")
    heads = layout.heads(payloads)
    if due or heads is None:
        for id, payload in zip(ids, payloads, strict=True):
            if id in due or heads is None:
                raise_damaged(name, id, layout.problem(payload))
    for id, (_, _, length) in zip(ids, heads or (), strict=False):
        if length > namespace.width:
            raise_damaged(name, id, f"its payload is of {length} tokens, and none has more than {namespace.width}")
    return heads, payloads


def _read_vectors(txn: Any, namespace: Namespace, ids: list[int], rows: Tensor, due: set[int]) -> list[memoryview]:
    """Return the embeddings of committed chunks, as bytes.

    Args:
        txn: to read from.
        namespace: as it is in this transaction.
        ids: of the chunks.
        rows: their places in ``namespace.entries``.
        due: ids to check.
    """
    if not ids:
        return []
    shape, number = namespace.record.shape, namespace.record.number
    size = shape.vector_bytes
    entries = namespace.entries.numpy()[rows.numpy()].tolist()
    places = namespace.block_numbers(rows)
    values = {}
    for place in set(places):
        block = namespace.blocks[place]
        value = txn.get(id_key(VECTORS, number, block.first))
        check_vectors(value, block, shape, namespace.where)
        values[place] = value
    vectors = [
        values[place][entry[ROW] * size : (entry[ROW] + 1) * size] for place, entry in zip(places, entries, strict=True)
    ]
    if due:
        for id, vector, entry in zip(ids, vectors, entries, strict=True):
            if id in due and xxh3_64_intdigest(vector) != entry[CHECKSUM] % (1 << 64):
                raise_damaged(namespace.record.name, id, "the checksum of the embeddings does not match")
    return vectors
