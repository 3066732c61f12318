from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from int8_tolerance import Int8Tests

from memcore.compression import decompress
from memcore.testing import PersistentBackendTests, make_chunks

pytest.importorskip("lmdb")

import lmdb
from lmdb_memories import file_of
from memcore_lmdb.backend import LmdbBackend
from memcore_lmdb.options import LmdbOptions

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from torch import Tensor

    from memcore.backend import MemoryBackend
    from memcore.testing.child import ChildProcess

HEADS, KEY_SIZE, VALUE_SIZE = 2, 4, 3  # of the kit's chunks


def payload_key(txn: Any, namespace: str, id: int) -> bytes:
    """Find the key of a chunk's payload as docs/lmdb-format.md says, without the backend's code."""
    cursor = txn.cursor()
    for key, value in cursor:
        if key[:1] == b"n" and f'"name": "{namespace}"'.encode() in value:
            number = value.partition(b'"number": ')[2].partition(b",")[0]
            return b"p" + int(number).to_bytes(8, "big") + id.to_bytes(8, "big")
    raise AssertionError(f"no namespace {namespace!r}")


def numbers(value: bytes, at: int, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, int]:
    """Return the numbers of this shape that lie at this place, and where they end."""
    size = dtype.itemsize * torch.Size(shape).numel()
    return torch.frombuffer(bytearray(value[at : at + size]), dtype=dtype).view(shape), at + size


def raw_value(backend: LmdbBackend, namespace: str, id: int) -> tuple[bytes, int, torch.dtype]:
    """Read a payload past the backend, from a copy of its file; return its length and the namespace's dtype, too."""
    file = file_of(backend._options.path)
    twin = file.with_name("twin")
    twin.write_bytes(file.read_bytes())
    with lmdb.open(str(twin), subdir=False, lock=False, readonly=True) as env, env.begin() as txn:
        key = payload_key(txn, namespace, id)
        value = txn.get(key) or b""
        record = next(v for k, v in txn.cursor() if k[:1] == b"n" and f'"name": "{namespace}"'.encode() in v)
    twin.unlink()
    dtype = getattr(torch, record.partition(b'"dtype": "')[2].partition(b'"')[0].decode())
    return value, int.from_bytes(value[16:20], "little"), dtype


class TestContract(PersistentBackendTests):
    def options(self, path: Path, **more: Any) -> LmdbOptions:
        return LmdbOptions(path=path / "memory", **more)

    def open(self, path: Path) -> LmdbBackend:
        return LmdbBackend(self.options(path))

    def reopen(self, path: Path, read_only: bool = False) -> LmdbBackend:
        return LmdbBackend(self.options(path, read_only=read_only))

    def raw_payload(self, backend: MemoryBackend, namespace: str, id: int) -> tuple[Tensor, Tensor]:
        assert isinstance(backend, LmdbBackend)
        value, length, dtype = raw_value(backend, namespace, id)
        keys, at = numbers(value, 32 + 8 * length, (HEADS, length, KEY_SIZE), dtype)
        values, at = numbers(value, at, (HEADS, length, VALUE_SIZE), dtype)
        assert at == len(value)
        return keys, values

    def damage(self, path: Path, namespace: str, id: int) -> None:
        file = file_of(path / "memory")
        with lmdb.open(str(file), subdir=False) as env, env.begin(write=True) as txn:
            key = payload_key(txn, namespace, id)
            value = bytearray(txn.get(key) or b"")
            value[32 + 8 * int.from_bytes(value[16:20], "little")] ^= 1
            txn.put(key, bytes(value))


class TestContractWithoutABuffer(TestContract):
    """What was stored is committed before the next is, so that most of what is read comes from the file."""

    def options(self, path: Path, **more: Any) -> LmdbOptions:
        return LmdbOptions(path=path / "memory", write_buffer=0, sync=False, verify="always", **more)

    def test_a_reader_sees_what_the_writer_flushed(self, tmp_path: Path, child: ChildProcess) -> None:
        with self.open(tmp_path) as backend:
            ids = backend.store("a", make_chunks(3))
            backend.store("b", make_chunks(2))
            child.ask("open", path=str(tmp_path), read_only=True)
            assert child.ask("ids") == {"a": ids.tolist()}
            backend.flush()
            assert child.ask("ids") == {"a": ids.tolist(), "b": [0, 1]}


class TestContractOfInt8(Int8Tests, TestContract):
    def options(self, path: Path, **more: Any) -> LmdbOptions:
        return LmdbOptions(path=path / "memory", compression="int8", sync=False, **more)

    def test_bytes_are_counted_at_least_for_what_is_stored(self, backend: MemoryBackend) -> None:
        chunks = make_chunks(8, width=64, key_size=64, value_size=64, heads=4)
        numbers = int(chunks.lengths.sum()) * 4 * (64 + 64)
        backend.store("a", chunks)
        assert numbers < backend.nbytes("a") - chunks.embeddings.nbytes < 1.4 * numbers
        backend.drop("a")
        assert backend.nbytes() == 0

    def raw_payload(self, backend: MemoryBackend, namespace: str, id: int) -> tuple[Tensor, Tensor]:
        assert isinstance(backend, LmdbBackend)
        value, length, dtype = raw_value(backend, namespace, id)
        payload, at = {}, 32 + 8 * length
        for name, shape, kind in (
            ("key_scales", (1, HEADS, KEY_SIZE), torch.float32),
            ("key_offsets", (1, HEADS, KEY_SIZE), torch.float32),
            ("value_scales", (1, HEADS, length), torch.float32),
            ("value_offsets", (1, HEADS, length), torch.float32),
            ("keys", (1, HEADS, length, KEY_SIZE), torch.int8),
            ("values", (1, HEADS, length, VALUE_SIZE), torch.int8),
        ):
            payload[name], at = numbers(value, at, shape, kind)
        assert at == len(value)
        keys, values = decompress(payload, torch.tensor([length]), dtype)
        return keys[0], values[0]
