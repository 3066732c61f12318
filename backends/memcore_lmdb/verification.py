"""Reading everything there is, to find what is damaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memcore.backend import Damage
from memcore.errors import CorruptedError, MemcoreError
from memcore_lmdb.blocks import ID, LENGTH, Block, damaged_entries, unpack_block, vectors_of
from memcore_lmdb.format import (
    BLOCK,
    HEADER,
    NAMESPACE,
    PAYLOAD,
    RECORD,
    VECTORS,
    NamespaceRecord,
    check_header,
    keys_from,
    split_id_key,
    unpack_name,
    unpack_named,
)
from memcore_lmdb.payload import PayloadLayout, payload_length


def verify(txn: Any, progress: Callable[[int, int], None] | None) -> list[Damage]:
    """Compare every checksum, and what is there with what should be.

    Args:
        txn: to read from.
        progress: called with (entries read, entries in all).
    """
    inspector = _Inspector(txn)
    total = txn.stat()["entries"]
    if not total and progress:
        progress(0, 0)
    for done, (key, value) in enumerate(txn.cursor(), 1):
        inspector.look_at(bytes(key), value)
        if progress:
            progress(done, total)
    return inspector.finish()


class _Inspector:
    """Looks at one entry of the file after the other."""

    def __init__(self, txn: Any) -> None:
        self.damage: list[Damage] = []
        self.records: dict[int, NamespaceRecord] = {}
        self.lengths: dict[int, dict[int, int]] = {}  # of each chunk of each namespace whose payload was not seen
        self.blocks: dict[tuple[int, int], Block] = {}
        for _ in keys_from(cursor := txn.cursor(), NAMESPACE):
            try:
                record = NamespaceRecord.unpack(cursor.value())
            except CorruptedError as error:
                self.damage.append(Damage(problem=str(error)))
                continue
            self.records[record.number] = record
            self.lengths[record.number] = {}
        for key in keys_from(cursor := txn.cursor(), BLOCK):
            number, first = split_id_key(key)
            if number in self.records:
                self._read_block(number, first, cursor.value())
        for number, record in self.records.items():
            if len(self.lengths[number]) != record.count:
                self._report(number, None, f"{len(self.lengths[number])} chunks are listed, and {record.count} counted")

    def look_at(self, key: bytes, value: memoryview) -> None:
        kind = key[:1]
        try:
            if key == HEADER:
                check_header(value, "the file")
            elif kind == RECORD:
                what = f"record {unpack_name(value)!r}"
                unpack_named(value, what)
            elif kind in (VECTORS, PAYLOAD):
                number, id = split_id_key(key)
                if number in self.records:
                    (self._look_at_vectors if kind == VECTORS else self._look_at_payload)(number, id, value)
        except MemcoreError as error:
            self.damage.append(Damage(problem=str(error)))

    def finish(self) -> list[Damage]:
        for number, first in self.blocks:
            self._report(number, None, f"the embeddings of the block of chunk {first} are missing")
        for number, lengths in self.lengths.items():
            for id in lengths:
                self._report(number, id, "the payload is missing")
        return self.damage

    def _read_block(self, number: int, first: int, value: memoryview) -> None:
        try:
            block = unpack_block(first, value, f"namespace {self.records[number].name!r}")
        except CorruptedError as error:
            self._report(number, None, str(error))
            return
        self.blocks[number, first] = block
        self.lengths[number].update(zip(block.entries[:, ID].tolist(), block.entries[:, LENGTH].tolist(), strict=True))

    def _look_at_vectors(self, number: int, first: int, value: memoryview) -> None:
        block = self.blocks.pop((number, first), None)
        if block is None:
            self._report(number, None, f"there are embeddings of a block of chunk {first}, which is not listed")
            return
        shape = self.records[number].shape
        if len(value) != block.rows * shape.vectors * shape.size * 4:
            self._report(number, None, f"the embeddings of the block of chunk {first} have {len(value)} bytes")
            return
        for id in damaged_entries(vectors_of(value, block.rows, shape), block.entries):
            self._report(number, id, "the checksum of the embeddings does not match")

    def _look_at_payload(self, number: int, id: int, value: memoryview) -> None:
        length = self.lengths[number].pop(id, None)
        record = self.records[number]
        if length is None:
            self._report(number, id, "there is a payload of a chunk that is not listed")
            return
        problem = PayloadLayout(record.shape, record.compression).problem(value)
        if not problem and payload_length(value) != length:
            problem = f"the payload is of {payload_length(value)} tokens instead of {length}"
        if problem:
            self._report(number, id, problem)

    def _report(self, number: int, id: int | None, problem: str) -> None:
        self.damage.append(Damage(namespace=self.records[number].name, id=id, problem=problem))
