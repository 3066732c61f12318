"""Reading everything there is, to find what is damaged and what is sound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs
import torch
from torch import Tensor

from memcore.backend import Damage
from memcore.errors import CorruptedError, MemcoreError
from memcore_lmdb.blocks import ID, LENGTH, Block, damaged_entries, unpack_block, vectors_of
from memcore_lmdb.format import (
    BLOCK,
    COUNTER,
    HEADER,
    NAMESPACE,
    PAYLOAD,
    RECORD,
    UNFINISHED,
    VECTORS,
    NamespaceRecord,
    check_header,
    name_key,
    split_id_key,
    unpack_counter,
    unpack_name,
    unpack_named,
)
from memcore_lmdb.page_format import Place
from memcore_lmdb.pages import Snapshot
from memcore_lmdb.payload import PayloadLayout, payload_length

Progress = Callable[[int, int], None]

_KEY_SIZES: Final = {NAMESPACE: 17, RECORD: 17, BLOCK: 17, VECTORS: 17, PAYLOAD: 17, UNFINISHED: 9}


@attrs.define(eq=False)
class SoundNamespace:
    """What is sound of a namespace.

    Attributes:
        record: as it is in the file.
        blocks: whose lists can be read.
        damaged: ids of chunks that are in ``blocks`` and not to be used.
    """

    record: NamespaceRecord
    blocks: dict[int, Block] = attrs.field(factory=dict)
    damaged: set[int] = attrs.field(factory=set)

    @property
    def where(self) -> str:
        """What to call it in messages."""
        return f"namespace {self.record.name!r}"

    def sound(self, block: Block) -> Tensor:
        """Return the entries of a block, ``[M, 4]`` as in :class:`memcore_lmdb.blocks.Block`, that are sound."""
        sound = [id not in self.damaged for id in block.entries[:, ID].tolist()]
        return block.entries[torch.tensor(sound, dtype=torch.bool)]


class Inspection:
    """Everything in a file, compared with its checksums and with what should be there.

    Reads the file itself, so that no damage can end the process.

    Attributes:
        damage: what is wrong.
        places: where the value of each key lies.
        namespaces: what is sound, by number.
        names: of these in a copy, by number: no two of them share one, as they can where a key was damaged.
        records: keys of records that are sound.

    Args:
        snapshot: of the file; nothing of it was read before.
        progress: called with (entries read, entries in all).
    """

    def __init__(self, snapshot: Snapshot, progress: Progress | None = None) -> None:
        self._snapshot = snapshot
        self.damage: list[Damage] = []
        self.namespaces: dict[int, SoundNamespace] = {}
        self.names: dict[int, str] = {}
        self.records: list[bytes] = []
        self.places: dict[bytes, Place] = {}
        self._find_entries()
        self._waiting: dict[int, dict[int, int]] = {}  # lengths of the chunks of each namespace without payloads yet
        self._vectors_missing: set[tuple[int, int]] = set()  # of the blocks
        self._unfinished = {int.from_bytes(key[1:], "big") for key in self.places if key[:1] == UNFINISHED}
        self._unknown: dict[int, int] = {}  # payloads of each number without a namespace
        self._misplaced: set[int] = set()  # namespaces that are not found under their names
        for key in (HEADER, COUNTER):
            if key not in self.places:
                self._add(f"the entry {key.decode()!r} of the file is missing")
        for key in self._keys(NAMESPACE):
            self._read_namespace(key)
        self._name_them()
        for key in self._keys(BLOCK):
            self._read_block(key)
        for number, held in self.namespaces.items():
            self._look_at_order(number, held)
            listed = len(self._waiting[number])
            if listed != held.record.count:
                self._report(number, None, f"{listed} chunks are listed, and {held.record.count} counted")
        total = len(self.places)
        if not total and progress:
            progress(0, 0)
        for done, (key, place) in enumerate(self.places.items(), 1):
            self._look_at(key, place)
            if progress:
                progress(done, total)
        self._look_at_what_is_left()

    def _find_entries(self) -> None:
        snapshot = self._snapshot
        entries = list(snapshot.entries())
        if snapshot.problems:
            entries += snapshot.lost_entries()
        self.damage += [Damage(problem=f"the file: {problem}") for problem in snapshot.problems]
        for key, place in entries:
            if key in (HEADER, COUNTER) or _KEY_SIZES.get(key[:1]) == len(key):
                self.places.setdefault(key, place)
            else:
                self._add(f"the file: there is an entry with the key {key.hex()}, which is none of memcore's")

    def _keys(self, kind: bytes) -> list[bytes]:
        return [key for key in self.places if key[:1] == kind and key not in (HEADER, COUNTER)]

    def _value(self, key: bytes) -> memoryview:
        return memoryview(self._snapshot.value(self.places[key]))

    def _read_namespace(self, key: bytes) -> None:
        try:
            record = NamespaceRecord.unpack(self._value(key))
            PayloadLayout(record.shape, record.compression)
        except MemcoreError as error:
            self._add(str(error))
            return
        if record.number in self.namespaces:
            other = self.namespaces[record.number].record.name
            self._add(f"namespace {record.name!r}: it has the number of namespace {other!r}")
            return
        if name_key(NAMESPACE, record.name) != key:
            self._add(f"namespace {record.name!r}: its key is damaged, so it is not found under its name")
            self._misplaced.add(record.number)
        self.namespaces[record.number] = SoundNamespace(record)
        self._waiting[record.number] = {}

    def _name_them(self) -> None:
        """Choose other names for what is not found under its own, if another namespace has come in its place."""
        self.names = {number: held.record.name for number, held in self.namespaces.items()}
        taken = {name for number, name in self.names.items() if number not in self._misplaced}
        for number in sorted(self._misplaced):
            own = name = self.names[number]
            while name in taken:
                name = f"{name} (number {number})"
            if name != own:
                self._add(f"namespace {own!r}: there is another of that name; a copy calls this one {name!r}")
            self.names[number] = name
            taken.add(name)

    def _read_block(self, key: bytes) -> None:
        number, first = split_id_key(key)
        held = self.namespaces.get(number)
        if held is None:
            return
        try:
            block = unpack_block(first, self._value(key), held.where)
        except CorruptedError as error:
            self._report(number, None, str(error).removeprefix(f"{held.where}, "))
            return
        held.blocks[first] = block
        self._vectors_missing.add((number, first))
        self._waiting[number].update(zip(block.entries[:, ID].tolist(), block.entries[:, LENGTH].tolist(), strict=True))

    def _look_at_order(self, number: int, held: SoundNamespace) -> None:
        """Give up blocks whose ids or lengths cannot be those of the namespace."""
        last = -1
        for first, block in sorted(held.blocks.items()):
            ids, lengths = block.entries[:, ID].tolist(), block.entries[:, LENGTH].tolist()
            if last < ids[0] and ids[-1] < held.record.next_id and max(lengths) <= held.record.width:
                last = ids[-1]
                continue
            self._report(number, None, f"the ids or lengths in the list of the block of chunk {first} are not in order")
            del held.blocks[first]
            self._vectors_missing.discard((number, first))
            for id in ids:
                self._waiting[number].pop(id, None)

    def _look_at(self, key: bytes, place: Place) -> None:
        kind = key[:1]
        try:
            if key == HEADER:
                check_header(self._value(key), "the file")
            elif key == COUNTER:
                unpack_counter(self._value(key))
            elif kind == RECORD:
                self._look_at_record(key)
            elif kind in (VECTORS, PAYLOAD):
                number, id = split_id_key(key)
                if number in self.namespaces:
                    problem = self._snapshot.problem(place)
                    (self._look_at_vectors if kind == VECTORS else self._look_at_payload)(number, id, key, problem)
                elif kind == PAYLOAD and number not in self._unfinished:
                    self._unknown[number] = self._unknown.get(number, 0) + 1
        except MemcoreError as error:
            self._add(str(error))

    def _look_at_what_is_left(self) -> None:
        for number, first in sorted(self._vectors_missing):
            self._report(number, None, f"the embeddings of the block of chunk {first} are missing")
            self._give_up(number, first)
        for number, lengths in self._waiting.items():
            for id in lengths:
                self._report(number, id, "the payload is missing")
        for number, count in self._unknown.items():
            self._add(f"there are {count} chunks of a namespace (its number is {number}) whose description is lost")

    def _look_at_record(self, key: bytes) -> None:
        value = self._value(key)
        name = unpack_name(value)
        unpack_named(value, f"record {name!r}")
        if name_key(RECORD, name) != key:
            self._add(f"record {name!r}: its key is damaged, so it is not found under its name")
        self.records.append(key)

    def _look_at_vectors(self, number: int, first: int, key: bytes, problem: str) -> None:
        held = self.namespaces[number]
        if (number, first) not in self._vectors_missing:
            self._report(number, None, f"there are embeddings of a block of chunk {first}, which is not listed")
            return
        self._vectors_missing.remove((number, first))
        block, shape, value = held.blocks[first], held.record.shape, self._value(key)
        if problem:
            self._report(number, None, f"the embeddings of the block of chunk {first}: {problem}")
        if len(value) != block.rows * shape.vector_bytes:
            self._report(number, None, f"the embeddings of the block of chunk {first} have {len(value)} bytes")
            self._give_up(number, first)
            return
        for id in damaged_entries(vectors_of(value, block.rows, shape), block.entries):
            self._report(number, id, "the checksum of the embeddings does not match")

    def _look_at_payload(self, number: int, id: int, key: bytes, problem: str) -> None:
        length = self._waiting[number].pop(id, None)
        record, value = self.namespaces[number].record, self._value(key)
        if length is None:
            self._report(number, id, "there is a payload of a chunk that is not listed")
            return
        if problem:  # of what lies before it: it may be whole
            self.damage.append(Damage(namespace=record.name, id=id, problem=problem))
        damage = PayloadLayout(record.shape, record.compression).problem(value)
        if not damage and payload_length(value) != length:
            damage = f"the payload is of {payload_length(value)} tokens instead of {length}"
        if damage:
            self._report(number, id, damage)

    def _give_up(self, number: int, first: int) -> None:
        """Take all chunks of a block for damaged."""
        held = self.namespaces[number]
        held.damaged.update(held.blocks[first].entries[:, ID].tolist())

    def _report(self, number: int, id: int | None, problem: str) -> None:
        held = self.namespaces[number]
        self.damage.append(Damage(namespace=held.record.name, id=id, problem=problem))
        if id is not None:
            held.damaged.add(id)

    def _add(self, problem: str) -> None:
        self.damage.append(Damage(problem=problem))
