"""The namespaces that are committed, remembered for as long as they stay the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memcore.errors import CorruptedError
from memcore_lmdb.blocks import ascending, read_blocks
from memcore_lmdb.format import NAMESPACE, NamespaceRecord, keys_from, name_key
from memcore_lmdb.namespace import Namespace


class Catalogue:
    """Finds namespaces by name and reads again only those that were changed.

    A namespace's record changes with its chunks: ids only grow, so no two sets of chunks have the same next id and
    count under one number.
    """

    def __init__(self) -> None:
        self._found: dict[str, tuple[bytes, Namespace]] = {}
        self._moment: object = None
        self._records: dict[str, NamespaceRecord] = {}

    def find(self, txn: Any, name: str) -> Namespace | None:
        """Return a namespace as it is in this transaction, None if there is none of that name.

        Raises:
            CorruptedError: what is known of it is damaged.
        """
        value = txn.get(name_key(NAMESPACE, name))
        raw, before = self._found.get(name, (b"", None))
        if value is None:
            self._found.pop(name, None)
            return None
        if before is not None and bytes(value) == raw:  # comparing a view takes five times as long
            return before
        where = f"namespace {name!r}"
        record = NamespaceRecord.unpack(value, where)
        if record.name != name:
            raise CorruptedError(f"{where}: it says that it is {record.name!r}")
        known = before.stored if before is not None and before.record.number == record.number else ()
        blocks = read_blocks(txn, record.number, where, known)
        listed = sum(map(len, blocks))
        if listed != record.count:
            raise CorruptedError(f"{where}: {listed} chunks are listed, and {record.count} counted")
        namespace = Namespace(record, blocks)
        if len(namespace.entries):
            ids, _, lengths, _ = namespace.entries.numpy().T
            if not ascending(ids) or ids[-1] >= record.next_id or lengths.max() > record.width:
                raise CorruptedError(f"{where}: the ids or lengths that are listed are not in order")
        self.put(namespace)
        return namespace

    def put(self, namespace: Namespace) -> None:
        """Remember a namespace that is committed like this."""
        self._found[namespace.record.name] = (namespace.record.pack(), namespace)

    def records(self, txn: Any, file: Path) -> dict[str, NamespaceRecord]:
        """Return what is known of every namespace, by name.

        Args:
            txn: to read from.
            file: what it reads.

        Raises:
            CorruptedError: what is known of one is damaged.
        """
        moment = (file, txn.id())
        if self._moment != moment:
            cursor = txn.cursor()
            found = [NamespaceRecord.unpack(cursor.value()) for _ in keys_from(cursor, NAMESPACE)]
            self._records = {record.name: record for record in found}
            self._moment = moment
        return self._records
