"""What outlives the instance that stored it, tested in one process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from memcore.errors import BackendError, ChunkShapeError, ClosedError, ReadOnlyError
from memcore.testing.case import PersistentCase
from memcore.testing.chunks import DTYPES, make_chunks, random_queries, select
from memcore.testing.contents import assert_same_contents, contents_of
from memcore.testing.names import ODD_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from memcore.backend import PersistentBackend
    from memcore.chunk import ChunkBatch


class PersistenceTests(PersistentCase):
    """Reopening, records, reading only, verification and compaction."""

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_chunks_come_back_after_reopening(self, tmp_path: Path, dtype: torch.dtype) -> None:
        chunks = make_chunks(5, dtype=dtype)
        with self.open(tmp_path) as backend:
            ids = backend.store("a", chunks)
        with self.reopen(tmp_path) as backend:
            assert torch.equal(backend.ids("a"), ids)
            self.assert_same(backend.fetch("a", ids), chunks)

    def test_everything_is_there_after_reopening(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as backend:
            fill(backend)
            want = contents_of(backend)
            sizes = {name: backend.nbytes(name) for name in backend.namespaces()}
        for _ in range(2):
            with self.reopen(tmp_path) as backend:
                assert_same_contents(contents_of(backend), want)
                assert {name: backend.nbytes(name) for name in backend.namespaces()} == sizes
                assert backend.verify() == []

    def test_searches_find_the_same_after_reopening(self, tmp_path: Path) -> None:
        queries = random_queries(4)
        with self.open(tmp_path) as backend:
            backend.evict("a", backend.store("a", make_chunks(30))[::3])
            want = backend.retrieve("a", queries, 5)
        with self.reopen(tmp_path) as backend:
            got = backend.retrieve("a", queries, 5)
        if self.exact:
            assert torch.equal(got.ids, want.ids)
            torch.testing.assert_close(got.scores, want.scores)
        assert got.ids.shape == want.ids.shape

    def test_reopening_goes_on_where_it_was(self, tmp_path: Path) -> None:
        chunks = [make_chunks(2, seed=seed, width=seed + 2) for seed in range(3)]
        ids = []
        with self.open(tmp_path) as backend:
            ids.append(backend.store("a", chunks[0]))
        for batch in chunks[1:]:
            with self.reopen(tmp_path) as backend:
                ids.append(backend.store("a", batch))
        with self.reopen(tmp_path) as backend:
            for own, batch in zip(ids, chunks, strict=True):
                self.assert_same(backend.fetch("a", own), batch)

    def test_ids_are_not_used_again_after_reopening(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as backend:
            given = backend.store("a", make_chunks(4))
            backend.evict("a", given[2:])
        with self.reopen(tmp_path) as backend:
            more = backend.store("a", make_chunks(2, seed=1))
            assert int(more[0]) > int(given[-1])
            backend.evict("a", backend.ids("a"))
        with self.reopen(tmp_path) as backend:
            assert int(backend.store("a", make_chunks(1))[0]) > int(more[-1])

    def test_what_was_removed_stays_away_after_reopening(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as backend:
            ids = backend.store("a", make_chunks(3))
            backend.store("b", make_chunks(2))
            backend.flush()
            backend.evict("a", ids[1:])
            backend.drop("b")
        with self.reopen(tmp_path) as backend:
            assert torch.equal(backend.ids("a"), ids[:1])
            assert backend.namespaces() == ["a"]
            assert backend.ids("b").tolist() == []

    def test_a_dropped_namespace_may_begin_again_after_reopening(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as backend:
            backend.store("a", make_chunks(2))
            backend.drop("a")
        with self.reopen(tmp_path) as backend:
            chunks = make_chunks(2, vectors=1, size=3, heads=1, dtype=torch.float16)
            ids = backend.store("a", chunks)
        with self.reopen(tmp_path) as backend:
            self.assert_same(backend.fetch("a", ids), chunks)

    def test_a_copy_stays_apart_after_reopening(self, tmp_path: Path) -> None:
        chunks = make_chunks(3)
        with self.open(tmp_path) as backend:
            ids = backend.store("a", chunks)
            backend.copy("a", "b")
            backend.evict("a", ids[:2])
        with self.reopen(tmp_path) as backend:
            assert torch.equal(backend.ids("a"), ids[2:])
            self.assert_same(backend.fetch("b", backend.ids("b")), chunks)
            backend.drop("a")
        with self.reopen(tmp_path) as backend:
            self.assert_same(backend.fetch("b", backend.ids("b")), chunks)

    def test_odd_names_come_back_after_reopening(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as backend:
            ids = [backend.store(name, make_chunks(1, seed=seed)) for seed, name in enumerate(ODD_NAMES)]
        with self.reopen(tmp_path) as backend:
            assert backend.namespaces() == sorted(ODD_NAMES)
            for seed, (name, own) in enumerate(zip(ODD_NAMES, ids, strict=True)):
                self.assert_same(backend.fetch(name, own), make_chunks(1, seed=seed))

    def test_flushing_changes_nothing_that_is_seen(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as backend:
            backend.flush()
            fill(backend)
            want = contents_of(backend)
            for _ in range(2):
                backend.flush()
                assert_same_contents(contents_of(backend), want)

    def test_shapes_are_remembered_after_reopening(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as backend:
            ids = backend.store("a", make_chunks(2))
        with self.reopen(tmp_path) as backend:
            for other in (make_chunks(1, size=6), make_chunks(1, heads=1), make_chunks(1, dtype=torch.float16)):
                with pytest.raises(ChunkShapeError):
                    backend.store("a", other)
            assert torch.equal(backend.ids("a"), ids)

    def test_records_come_back_as_they_were(self, tmp_path: Path) -> None:
        values = {"empty": b"", "text": b"some", "bytes": bytes(range(256)), "large": bytes(200_000), "a": b"chunk?"}
        with self.open(tmp_path) as backend:
            assert backend.record_names() == []
            assert backend.read_record("text") is None
            backend.store("a", make_chunks(1))
            for name, value in values.items():
                backend.write_record(name, b"replaced")
                backend.write_record(name, value)
            assert contents_of(backend).records == values
        with self.reopen(tmp_path) as backend:
            assert backend.record_names() == sorted(values)
            assert {name: backend.read_record(name) for name in values} == values
            assert backend.namespaces() == ["a"]

    def test_records_are_dropped(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as backend:
            backend.write_record("one", b"1")
            backend.write_record("two", b"2")
            backend.flush()
            backend.drop_record("one")
            backend.drop_record("never there")
            assert backend.read_record("one") is None
        with self.reopen(tmp_path) as backend:
            assert backend.record_names() == ["two"]

    def test_records_have_any_name(self, tmp_path: Path) -> None:
        want = {name: str(place).encode() for place, name in enumerate(ODD_NAMES)}
        with self.open(tmp_path) as backend:
            for name, value in want.items():
                backend.write_record(name, value)
        with self.reopen(tmp_path) as backend:
            assert contents_of(backend).records == want
            assert backend.record_names() == sorted(want)
            assert backend.namespaces() == []

    def test_reading_only_shows_everything(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as backend:
            assert not backend.read_only
            fill(backend)
            want = contents_of(backend)
            found = backend.retrieve("a", random_queries(2), 3)
        with self.reopen(tmp_path, read_only=True) as backend:
            assert backend.read_only
            assert_same_contents(contents_of(backend), want)
            again = backend.retrieve("a", random_queries(2), 3)
            assert backend.verify() == []
            assert backend.disk_bytes() > 0
            backend.flush()
        torch.testing.assert_close(again.scores, found.scores)

    def test_reading_only_refuses_to_write_and_changes_nothing(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as backend:
            fill(backend)
            want = contents_of(backend)
        with self.reopen(tmp_path, read_only=True) as backend:
            ids = backend.ids("a")
            calls: list[Callable[[], object]] = [
                lambda: backend.store("a", make_chunks(1)),
                lambda: backend.store("new", make_chunks(1)),
                lambda: backend.evict("a", ids[:1]),
                lambda: backend.drop("a"),
                lambda: backend.copy("a", "new"),
                lambda: backend.write_record("r", b"new"),
                lambda: backend.write_record("new", b"new"),
                lambda: backend.drop_record("r"),
                lambda: backend.compact(),
            ]
            for call in calls:
                with pytest.raises(ReadOnlyError):
                    call()
            assert_same_contents(contents_of(backend), want)
        with self.reopen(tmp_path) as backend:
            assert_same_contents(contents_of(backend), want)

    def test_reading_only_needs_something_to_read(self, tmp_path: Path) -> None:
        with pytest.raises(BackendError):
            self.reopen(tmp_path, read_only=True)

    def test_verification_finds_a_flipped_bit(self, tmp_path: Path) -> None:
        chunks = make_chunks(4)
        with self.open(tmp_path) as backend:
            backend.store("a", make_chunks(3, seed=1))
            ids = backend.store("b", chunks)
            assert backend.verify() == []
        self.damage(tmp_path, "b", int(ids[2]))
        for read_only in (True, False):
            with self.reopen(tmp_path, read_only=read_only) as backend:
                damage = backend.verify()
                assert {(each.namespace, each.id) for each in damage} == {("b", int(ids[2]))}
                assert all(each.problem for each in damage)
                self.assert_same(backend.fetch("b", ids[[0, 1, 3]]), select(chunks, torch.tensor([0, 1, 3])))

    def test_verification_tells_how_far_it_is(self, tmp_path: Path) -> None:
        steps: list[tuple[int, int]] = []
        with self.open(tmp_path) as backend:
            backend.store("a", make_chunks(6))
            backend.flush()
            assert backend.verify(lambda done, total: steps.append((done, total))) == []
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1] > 0
        assert len({total for _, total in steps}) == 1

    def test_compacting_keeps_everything(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as backend:
            ids = backend.store("a", large_chunks(60))
            fill(backend, suffix="2")
            backend.flush()
            backend.evict("a", ids[2:])
            backend.flush()
            want, before = contents_of(backend), backend.disk_bytes()
            backend.compact()
            assert_same_contents(contents_of(backend), want)
            assert backend.disk_bytes() < before
            assert backend.verify() == []
            assert int(backend.store("a", large_chunks(1))[0]) > int(ids[-1])
            want = contents_of(backend)
        with self.reopen(tmp_path) as backend:
            assert_same_contents(contents_of(backend), want)

    def test_compacting_flushes(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as backend:
            backend.compact()
            fill(backend)
            want = contents_of(backend)
            backend.compact()
            assert_same_contents(contents_of(backend), want)
        with self.reopen(tmp_path) as backend:
            assert_same_contents(contents_of(backend), want)

    def test_disk_space_is_counted(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as backend:
            backend.store("a", large_chunks(20))
            backend.flush()
            assert backend.disk_bytes() >= backend.nbytes()

    def test_nothing_persistent_works_after_close(self, tmp_path: Path) -> None:
        backend = self.open(tmp_path)
        backend.close()
        calls: list[Callable[[], object]] = [
            lambda: backend.flush(),
            lambda: backend.write_record("r", b""),
            lambda: backend.read_record("r"),
            lambda: backend.drop_record("r"),
            lambda: backend.record_names(),
            lambda: backend.disk_bytes(),
            lambda: backend.verify(),
            lambda: backend.compact(),
        ]
        for call in calls:
            with pytest.raises(ClosedError):
                call()


def fill(backend: PersistentBackend, suffix: str = "") -> None:
    """Put chunks of several shapes, and records, into a backend; some chunks leave it again."""
    ids = backend.store(f"a{suffix}", make_chunks(5))
    backend.store(f"a{suffix}", make_chunks(2, width=7, seed=1))
    backend.evict(f"a{suffix}", ids[1:3])
    backend.store(f"b{suffix}", make_chunks(3, size=7, heads=1, dtype=torch.bfloat16))
    backend.write_record("r", b"a record")
    backend.write_record("s", b"")


def large_chunks(count: int) -> ChunkBatch:
    """Return chunks of a few kilobytes each."""
    return make_chunks(count, width=16, key_size=64, value_size=64)
