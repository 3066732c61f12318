"""Damage in an ``lmdb`` memory: it is named, and everything else is read."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import torch

from memcore.errors import CorruptedError
from memcore.testing import assert_same_chunks, make_chunks, random_queries, select

pytest.importorskip("lmdb")

import lmdb
from lmdb_memories import change, file_of, flip, keys_of, open_at
from memcore_lmdb.format import PAYLOAD, VECTORS

if TYPE_CHECKING:
    from pathlib import Path


class TestDamage:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        with open_at(tmp_path / "memory") as backend:
            backend.store("a", make_chunks(4))
            backend.store("b", make_chunks(2, seed=1))
        return tmp_path / "memory"

    @pytest.mark.parametrize("verify", ["first", "always"])
    def test_a_damaged_payload_is_named_and_the_others_are_read(self, path: Path, verify: str) -> None:
        change(path, keys_of(path, PAYLOAD)[2], flip)
        with open_at(path, verify=verify) as backend:
            for _ in range(2):
                with pytest.raises(CorruptedError, match=r"'a', chunk 2: .*checksum"):
                    backend.fetch("a", torch.arange(4))
                others = torch.tensor([0, 1, 3])
                assert_same_chunks(backend.fetch("a", others), select(make_chunks(4), others))
            assert [(each.namespace, each.id) for each in backend.verify()] == [("a", 2)]

    def test_unchecked_reading_gives_what_is_there(self, path: Path) -> None:
        change(path, keys_of(path, PAYLOAD)[2], lambda value: value.__setitem__(-1, value[-1] ^ 1))
        with open_at(path, verify="never") as backend:
            got, want = backend.fetch("a", torch.tensor([2])), select(make_chunks(4), [2])
            assert torch.equal(got.keys, want.keys[:, :, : got.keys.shape[2]])
            assert not torch.equal(got.values, want.values[:, :, : got.keys.shape[2]])
            assert len(backend.verify()) == 1

    @pytest.mark.parametrize(("verify", "notices"), [("first", False), ("always", True)])
    def test_only_the_first_read_is_checked_unless_asked(self, path: Path, verify: str, notices: bool) -> None:
        key = keys_of(path, PAYLOAD)[2]

        def edit(txn: Any) -> None:
            value = bytearray(txn.get(key))
            flip(value)
            txn.put(key, bytes(value))

        with open_at(path, verify=verify) as backend:
            backend.fetch("a", torch.arange(4))
            backend._environment.write(edit, 0)
            with pytest.raises(CorruptedError) if notices else contextlib.nullcontext():
                backend.fetch("a", torch.arange(4))

    def test_damaged_embeddings_are_named_and_not_searched(self, path: Path) -> None:
        change(path, keys_of(path, VECTORS)[0], lambda value: value.__setitem__(3 * 40, value[3 * 40] ^ 1))
        with open_at(path) as backend:
            with pytest.raises(CorruptedError, match="'a', chunk 3"):
                backend.retrieve("a", random_queries(1), 1)
            with pytest.raises(CorruptedError, match="'a', chunk 3"):
                backend.fetch("a", torch.tensor([3]))
            backend.fetch("a", torch.arange(3))
            backend.retrieve("b", random_queries(1), 1)
            assert [(each.namespace, each.id) for each in backend.verify()] == [("a", 3)]
            # Written anew with others, it is still what it was: damaged.
            backend.store("a", make_chunks(3, seed=5))
            backend.flush()
            assert [(each.namespace, each.id) for each in backend.verify()] == [("a", 3)]
            backend.evict("a", torch.tensor([3]))
            assert backend.retrieve("a", random_queries(1), 9).ids.max() == 6

    def test_a_payload_cut_short_or_missing_is_named(self, path: Path) -> None:
        keys = keys_of(path, PAYLOAD)
        change(path, keys[1], lambda value: value.__delitem__(slice(-4, None)))
        with lmdb.open(str(file_of(path)), subdir=False) as env, env.begin(write=True) as txn:
            txn.delete(keys[0])
        with open_at(path, verify="never") as backend:
            with pytest.raises(CorruptedError, match=r"chunk 0.*missing"):
                backend.fetch("a", torch.arange(4))
            with pytest.raises(CorruptedError, match=r"chunk 1.*bytes"):
                backend.fetch("a", torch.arange(1, 4))
            assert sorted((each.namespace, each.id) for each in backend.verify()) == [("a", 0), ("a", 1)]

    @pytest.mark.parametrize("kind", [b"n", b"b"])
    def test_damaged_descriptions_are_reported_and_keep_to_themselves(self, path: Path, kind: bytes) -> None:
        change(path, keys_of(path, kind)[0], flip)
        with open_at(path) as backend:
            readable = []
            for name, seed, count in (("a", 0, 4), ("b", 1, 2)):
                try:
                    assert_same_chunks(backend.fetch(name, torch.arange(count)), make_chunks(count, seed=seed))
                    readable.append(name)
                except CorruptedError as error:
                    assert name in str(error)  # noqa: PT017
            assert len(readable) == 1
            assert backend.verify()

    @pytest.fixture
    def damaged_record(self, path: Path) -> Path:
        """A memory with two records, of which ``r`` is damaged."""
        with open_at(path) as backend:
            backend.write_record("r", b"a value that is long enough")
            backend.write_record("s", b"another")
        with open_at(path) as backend, backend._environment.read() as txn:
            key = next(bytes(key) for key, value in txn.cursor() if b"long enough" in bytes(value))
        change(path, key, lambda value: value.__setitem__(-1, value[-1] ^ 1))
        return path

    def test_damaged_records_are_named(self, damaged_record: Path) -> None:
        with open_at(damaged_record) as backend:
            with pytest.raises(CorruptedError, match="'r'"):
                backend.read_record("r")
            assert backend.read_record("s") == b"another"
            assert [each for each in backend.verify() if "'r'" in str(each)]

    def test_a_damaged_record_can_be_dropped(self, damaged_record: Path) -> None:
        with open_at(damaged_record) as backend:
            backend.drop_record("r")
            backend.drop_record("r")
            assert backend.read_record("r") is None
        with open_at(damaged_record) as backend:
            assert backend.record_names() == ["s"]
            assert backend.verify() == []
