"""Everything since the last commit, and how one transaction commits it."""

from __future__ import annotations

from typing import Any

import attrs
import torch

from memcore_lmdb.block_writing import NewRows, write_blocks
from memcore_lmdb.blocks import new_entries
from memcore_lmdb.format import (
    BLOCK,
    COUNTER,
    NAMESPACE,
    PAYLOAD,
    RECORD,
    VECTORS,
    id_key,
    name_key,
    number_key,
    pack_named,
    seal,
    unpack_counter,
)
from memcore_lmdb.namespace import Namespace


@attrs.define(eq=False)
class Overlay:
    """What lies over the file.

    Attributes:
        namespaces: those that were changed, by name; None for one that was dropped.
        dropped: numbers of committed namespaces that were dropped, also where others have their names now.
        records: those that were changed, by name; None for one that was dropped.
        nbytes: bytes that were staged.
    """

    namespaces: dict[str, Namespace | None] = attrs.field(factory=dict)
    dropped: list[int] = attrs.field(factory=list)
    records: dict[str, bytes | None] = attrs.field(factory=dict)
    nbytes: int = 0

    def __bool__(self) -> bool:
        return bool(self.namespaces or self.records or self.dropped)

    def write(self, txn: Any) -> list[Namespace]:
        """Write all of it, changing nothing here, and return the namespaces as they are committed then."""
        for number in self.dropped:
            delete_contents(txn, number)
        committed = []
        for name, namespace in self.namespaces.items():
            if namespace is None:
                txn.delete(name_key(NAMESPACE, name))
            else:
                committed.append(_write_namespace(txn, namespace))
        for name, value in self.records.items():
            if value is None:
                txn.delete(name_key(RECORD, name))
            else:
                txn.put(name_key(RECORD, name), pack_named(name, value))
        return committed


def take_number(txn: Any) -> int:
    """Return a number that no namespace ever had."""
    number = unpack_counter(txn.get(COUNTER))
    txn.put(COUNTER, seal((number + 1).to_bytes(8, "little")))
    return number


def delete_contents(txn: Any, number: int) -> None:
    """Delete all chunks of the namespace with this number."""
    cursor = txn.cursor()
    for kind in (BLOCK, VECTORS, PAYLOAD):
        prefix = number_key(kind, number)
        if cursor.set_range(prefix):
            while bytes(cursor.key()).startswith(prefix):
                cursor.delete()


def _write_namespace(txn: Any, namespace: Namespace) -> Namespace:
    number = namespace.record.number or take_number(txn)
    record = namespace.current_record(number)
    for id in namespace.removed:
        txn.delete(id_key(PAYLOAD, number, id))
    staged = namespace.staged
    new = None
    if len(staged):
        with torch.inference_mode(False), torch.no_grad():
            vectors = staged.vectors()
            new = NewRows(new_entries(staged.ids, staged.lengths, vectors), vectors)
    with torch.inference_mode(False), torch.no_grad():
        blocks = write_blocks(
            txn,
            number,
            record.shape,
            namespace.where,
            stored=namespace.stored,
            blocks=namespace.blocks,
            new=new,
        )
    # One after the other: as a list, so many new objects would have Python look for garbage, which takes as long.
    txn.cursor().putmulti((id_key(PAYLOAD, number, id), payload) for id, payload in staged.payloads())
    txn.put(name_key(NAMESPACE, record.name), record.pack())
    return Namespace(record, blocks)
