"""lmdb files in which single numbers were made to harm, and whose checksums fit."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lmdb")
import lmdb
from lmdb_memories import file_of
from memcore_lmdb.backend import LmdbBackend
from memcore_lmdb.blocks import pack_entries
from memcore_lmdb.format import BLOCK, COUNTER, NAMESPACE, RECORD, name_key, seal
from memcore_lmdb.options import LmdbOptions
from memcore_lmdb.page_format import HEADER, LEAF, read_metas
from memcore_lmdb.pages import Snapshot

from fuzz.target import limited_memory
from memcore.errors import BackendError, CorruptedError
from memcore.testing import assert_same_chunks, make_chunks
from memcore.testing.chunks import random_queries

CHUNKS = make_chunks(5, width=4)
KEY = name_key(NAMESPACE, "a")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with LmdbBackend(LmdbOptions(path=tmp_path, map_size=1 << 16)) as backend:
        backend.store("a", CHUNKS)
        backend.write_record("record", b"value")
    return tmp_path


def change(path: Path, key: bytes, change: Callable[[bytes], bytes | None]) -> None:
    """Put another value in the place of the first one whose key begins so; None deletes it."""
    with lmdb.open(str(file_of(path)), subdir=False, map_size=1 << 24) as env, env.begin(write=True) as txn:
        cursor = txn.cursor()
        assert cursor.set_range(key)
        found, value = bytes(cursor.key()), change(bytes(cursor.value()))
        assert found.startswith(key)
        if value is None:
            txn.delete(found)
        else:
            txn.put(found, value)


def described(**changes: Any) -> Callable[[bytes], bytes]:
    def changed(value: bytes) -> bytes:
        fields = json.loads(value[8:])
        shape = {name: changes.pop(name) for name in list(changes) if name in fields["shape"]}
        return seal(json.dumps({**fields, "shape": {**fields["shape"], **shape}, **changes}).encode())

    return changed


@pytest.fixture
def little_memory() -> Iterator[None]:
    with limited_memory(1 << 30):
        yield


@pytest.mark.usefixtures("little_memory")
def test_a_width_that_no_chunk_has_reserves_nothing(path: Path) -> None:
    change(path, KEY, described(width=10**8))
    with LmdbBackend(LmdbOptions(path=path, map_size=1 << 20)) as backend:
        assert_same_chunks(backend.fetch("a", backend.ids("a")), CHUNKS)
        assert backend.fetch("a", backend.ids("a")).keys.shape[2] == 4
        assert backend.verify() == []
        backend.store("a", make_chunks(1, width=9))
        backend.flush()
        assert backend.fetch("a", backend.ids("a")).keys.shape[2] <= 9


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    "changes",
    [
        {"heads": 1 << 40},
        {"heads": 1 << 31, "key_size": 1 << 31},
        {"key_size": -4},
        {"vectors": 0},
        {"size": 1 << 62},
        {"width": 1 << 40},
        {"width": 0},
        {"dtype": "load"},
        {"dtype": "int64"},
        {"dtype": 7},
        {"compression": "zip"},
        {"count": -5},
        {"count": 10**15, "next_id": 10**16},
        {"next_id": 3},
        {"next_id": 1 << 63},
        {"number": 0},
        {"number": -1},
        {"number": "1"},
        {"number": 1.0},
        {"name": "b"},
        {"more": 1},
        {"shape": None},
        {"tokens": True},
    ],
    ids=str,
)
def test_a_description_that_cannot_be_is_refused(path: Path, changes: dict[str, Any]) -> None:
    change(path, KEY, described(**changes) if changes.get("shape", 0) is not None else lambda _: seal(b'{"name": "a"}'))
    with LmdbBackend(LmdbOptions(path=path, read_only=True)) as backend:
        assert backend.verify()
        for call in (
            lambda: backend.fetch("a", torch.tensor([0])),
            lambda: backend.retrieve("a", random_queries(1), 2),
        ):
            with pytest.raises(BackendError):
                call()


def entries(rows: int, *numbers: list[int]) -> bytes:
    return pack_entries(rows, torch.tensor(numbers, dtype=torch.int64).view(-1, 4))


@pytest.mark.parametrize(
    "value",
    [
        seal(b""),
        seal(b"\0" * 8),
        seal(b"\0" * 20),
        entries(1, [0, 5, 2, 7]),
        entries(5, [0, -1, 2, 7]),
        entries(5, [0, 0, 2, 7], [0, 1, 2, 7]),
        entries(5, [3, 0, 2, 7], [1, 1, 2, 7]),
        entries(5, [-3, 0, 2, 7]),
        entries(5, *([id, 0, 2, 7] for id in range(5))),
        entries(5, *([id, id, 0, 7] for id in range(5))),
        entries(5, *([id, id, 5, 7] for id in range(5))),
        entries(5, *([id + 9, id, 2, 7] for id in range(5))),
        entries((1 << 64) - 1, *([id, id, 2, 7] for id in range(5))),
    ],
    ids=range(13),
)
def test_a_list_that_cannot_be_is_refused(path: Path, value: bytes) -> None:
    change(path, BLOCK, lambda _: value)
    with LmdbBackend(LmdbOptions(path=path, read_only=True)) as backend:
        assert backend.verify()
        with pytest.raises(BackendError):
            backend.fetch("a", torch.arange(5))
        with pytest.raises(BackendError):
            backend.retrieve("a", random_queries(1), 2)


@pytest.mark.parametrize("value", [None, b"", seal(b""), seal(b"\xff" * 8), seal(b"\xff" * 3000), seal(bytes(8))])
def test_a_counter_that_is_none_is_refused(path: Path, value: bytes | None) -> None:
    change(path, COUNTER, lambda _: value)
    backend = LmdbBackend(LmdbOptions(path=path))
    assert backend.verify()
    backend.store("b", CHUNKS)
    with pytest.raises(CorruptedError, match="counter"):
        backend.flush()
    backend.drop("b")
    backend._overlay.namespaces.clear()
    backend.close()


@pytest.mark.parametrize("value", [seal(b""), seal(b"\1"), seal(struct.pack("<I", 1 << 31) + b"record")])
def test_a_record_that_names_nothing_is_refused(path: Path, value: bytes) -> None:
    change(path, RECORD, lambda _: value)
    with LmdbBackend(LmdbOptions(path=path, read_only=True)) as backend, pytest.raises(CorruptedError):
        backend.read_record("record")


def test_more_metas_than_two_are_not_looked_for(path: Path) -> None:
    content = bytearray(file_of(path).read_bytes())
    for size in (256, 512, 8192, 16_384):
        content[size : size + 200] = content[:200]
        struct.pack_into("<I", content, size + 40, size)
    for damaged in (False, True):
        content[16] ^= damaged
        file_of(path).write_bytes(content)
        with file_of(path).open("rb") as file:
            assert len(list(read_metas(file.fileno(), len(content)))) <= 2
        with Snapshot(file_of(path)) as snapshot:
            snapshot.check()


def test_entries_that_lie_upon_each_other_take_no_more_than_the_page(path: Path) -> None:
    """As many places in a list as a page has room for, all of one node with a long key: a thousand times its bytes."""
    content = bytearray(file_of(path).read_bytes())
    with Snapshot(file_of(path)) as snapshot:
        root, size = snapshot.meta.main.root, snapshot.meta.page_size
    page = bytearray(size)
    places, node = 1500, size - 600
    HEADER.pack_into(page, 0, root, 0, LEAF, HEADER.size + 2 * places, HEADER.size + 2 * places)
    struct.pack_into(f"<{places}H", page, HEADER.size, *[node] * places)
    struct.pack_into("<HHHH", page, node, 0, 0, 0, 500)
    content[root * size : (root + 1) * size] = page
    file_of(path).write_bytes(content)
    with Snapshot(file_of(path)) as snapshot:
        assert sum(len(key) for key, _ in snapshot.entries()) <= size
        assert snapshot.problems
    with pytest.raises(CorruptedError):
        LmdbBackend(LmdbOptions(path=path))


def test_values_that_lie_upon_each_other_are_not_read_again_and_again(path: Path) -> None:
    """Each of many entries may say that its value is all of the file."""
    content = bytearray(file_of(path).read_bytes())
    with Snapshot(file_of(path)) as snapshot:
        root, size = snapshot.meta.main.root, snapshot.meta.page_size
        last = snapshot.meta.last_page
    page = bytearray(size)
    places, end = 100, size
    HEADER.pack_into(page, 0, root, 0, LEAF, HEADER.size + 2 * places, size - 24 * places)
    for place in range(places):
        end -= 24
        length = (last - 2) * size
        struct.pack_into("<HHHHQQ", page, end, length & 0xFFFF, length >> 16, 1, 8, place, 2)
        struct.pack_into("<H", page, HEADER.size + 2 * place, end)
    content[root * size : (root + 1) * size] = page
    file_of(path).write_bytes(content)
    with Snapshot(file_of(path)) as snapshot:
        assert sum(place.size for _, place in snapshot.entries()) <= 2 * len(content)
        assert snapshot.problems
