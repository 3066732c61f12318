"""What the bytes of the file are."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import psutil

from memcore.storage import FREE, NamespaceStorage, Storage
from memcore_lmdb.format import BLOCK, RECORD, VECTORS, NamespaceRecord, keys_from, split_id_key
from memcore_lmdb.page_format import METAS, Meta
from memcore_lmdb.payload import PayloadLayout

_PART_OF: Final = {"token_ids": "token ids"} | {
    f"{kind}{what}": f"{kind}s" for kind in ("key", "value") for what in ("s", "_scales", "_offsets")
}
"""Which part a section of payloads belongs to."""


def storage(txn: Any, records: Iterable[NamespaceRecord], meta: Meta, processes: int) -> Storage:
    """Return what the bytes of the file are, without reading a chunk.

    Args:
        txn: to read from.
        records: of all namespaces.
        meta: of the transaction.
        processes: what :class:`memcore.storage.Storage` says.
    """
    vectors, lists = _sizes(txn, VECTORS), _sizes(txn, BLOCK)
    namespaces = {record.name: _namespace(record, vectors[record.number], lists[record.number]) for record in records}
    cursor = txn.cursor()
    kept = sum(len(cursor.value()) for _ in keys_from(cursor, RECORD))
    stat = txn.stat()
    used = METAS + stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
    known = kept + sum(sum(each.parts.values()) for each in namespaces.values())
    return Storage(
        namespaces=namespaces,
        parts={
            "sessions and uses": kept,
            "pages and padding": max(0, used * meta.page_size - known),
            FREE: max(0, meta.last_page + 1 - used) * meta.page_size,
        },
        map_bytes=meta.map_bytes,
        processes=processes,
    )


def others_with(file: Path) -> int:
    """Return how many other processes have a file open, of those that this one may look at.

    LMDB does not know: its table of readers has those that are reading at this moment.
    """
    place, count = os.path.realpath(file), 0
    for process in psutil.process_iter():
        if process.pid != os.getpid():
            with contextlib.suppress(psutil.Error):  # it is another user's, or has just ended
                count += any(each.path == place for each in process.open_files())
    return count


def _sizes(txn: Any, kind: bytes) -> Counter[int]:
    """Return the bytes of all values of a kind, by the number of their namespace."""
    sizes: Counter[int] = Counter()
    cursor = txn.cursor()
    for key in keys_from(cursor, kind):
        number, _ = split_id_key(key)
        sizes[number] += len(cursor.value())
    return sizes


def _namespace(record: NamespaceRecord, vectors: int, lists: int) -> NamespaceStorage:
    layout = PayloadLayout(record.shape, record.compression)
    parts: Counter[str] = Counter()
    for section in layout.sections:
        fixed = section.nbytes(0)
        parts[_PART_OF[section.name]] += record.count * fixed + record.tokens * (section.nbytes(1) - fixed)
    heads = layout.nbytes(record.count, record.tokens) - record.count * record.shape.vector_bytes - parts.total()
    embeddings = record.count * record.shape.vector_bytes
    return NamespaceStorage(
        chunks=record.count,
        tokens=record.tokens,
        dtype=record.shape.dtype,
        compression=record.compression,
        parts={
            "keys": parts["keys"],
            "values": parts["values"],
            "embeddings": embeddings,
            "token ids": parts["token ids"],
            "index": lists + heads,
            "embeddings of chunks that are gone": max(0, vectors - embeddings),
        },
    )
