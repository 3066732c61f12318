"""Persistent backends with one fault each: ``test_testing.py`` runs the kit on these and expects failures.

They are the one of ``examples/memcore-sqlite`` but for their fault.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from memcore_sqlite.backend import SqliteBackend, SqliteOptions

from memcore.errors import ReadOnlyError
from memcore.testing import PersistentBackendTests

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch

    from memcore.backend import Damage, MemoryBackend, PersistentBackend


class OnSqlite(PersistentBackendTests):
    """The kit on a backend that is the example's but for its fault."""

    kind: type[SqliteBackend] = SqliteBackend

    def open(self, path: Path) -> PersistentBackend:
        return self.kind(SqliteOptions(path=path / "memory.db", timeout=0.1))

    def reopen(self, path: Path, read_only: bool = False) -> PersistentBackend:
        return self.kind(SqliteOptions(path=path / "memory.db", timeout=0.1, read_only=read_only))

    def raw_payload(self, backend: MemoryBackend, namespace: str, id: int) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError("no test with a second look is run on these")

    def damage(self, path: Path, namespace: str, id: int) -> None:
        with SqliteBackend(SqliteOptions(path=path / "memory.db")) as backend:
            number = backend._get(namespace).number
            backend._file.database.execute(
                "UPDATE chunks SET key_bytes = zeroblob(length(key_bytes)) WHERE namespace = ? AND id = ?", (number, id)
            )


class ForgetsOnReopening(SqliteBackend):
    def close(self) -> None:
        self._file.database.rollback()
        super().close()


class FlushesWhenClosedOnly(SqliteBackend):
    def flush(self) -> None:
        pass


class IgnoresReadOnly(SqliteBackend):
    def __init__(self, options: object) -> None:
        assert isinstance(options, SqliteOptions)
        super().__init__(attrs.evolve(options, read_only=False))


class RefusesButWrites(SqliteBackend):
    def drop_record(self, name: str) -> None:
        if not self.read_only:
            super().drop_record(name)
            return
        with SqliteBackend(SqliteOptions(path=self._file.path)) as other:
            other.drop_record(name)
        raise ReadOnlyError("read only")


class ReusesIdsAfterReopening(SqliteBackend):
    def __init__(self, options: object) -> None:
        super().__init__(options)
        if not self.read_only:
            self._file.database.execute(
                "UPDATE namespaces SET next_id = (SELECT coalesce(max(id) + 1, 0) FROM chunks WHERE namespace = number)"
            )


class CommitsRecordsAtOnce(SqliteBackend):
    """Keeps records in a file of their own, so that a crash leaves what never was at one moment."""

    def write_record(self, name: str, value: bytes) -> None:
        with self._other() as other:
            other.write_record(name, value)

    def read_record(self, name: str) -> bytes | None:
        with self._other() as other:
            return other.read_record(name)

    def _other(self) -> SqliteBackend:
        return SqliteBackend(SqliteOptions(path=self._file.path.with_name("records.db")))


class VerifiesNothing(SqliteBackend):
    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[Damage]:
        return []


class LosesChunksWhenCompacted(SqliteBackend):
    def compact(self) -> None:
        self._file.database.execute("DELETE FROM chunks WHERE id = 0")
        super().compact()


class NeverShrinks(SqliteBackend):
    def compact(self) -> None:
        if self.read_only:
            raise ReadOnlyError("read only")
        self.flush()


class ShowsReadersNothingNew(SqliteBackend):
    def __init__(self, options: object) -> None:
        super().__init__(options)
        if self.read_only:
            self._file.database.execute("BEGIN")


class LetsTwoWrite(SqliteBackend):
    def __init__(self, options: object) -> None:
        super().__init__(options)
        self._file.database.commit()


class TestSqlite(OnSqlite):
    pass


class TestForgetsOnReopening(OnSqlite):
    kind = ForgetsOnReopening


class TestFlushesWhenClosedOnly(OnSqlite):
    kind = FlushesWhenClosedOnly


class TestIgnoresReadOnly(OnSqlite):
    kind = IgnoresReadOnly


class TestRefusesButWrites(OnSqlite):
    kind = RefusesButWrites


class TestReusesIdsAfterReopening(OnSqlite):
    kind = ReusesIdsAfterReopening


class TestCommitsRecordsAtOnce(OnSqlite):
    kind = CommitsRecordsAtOnce


class TestVerifiesNothing(OnSqlite):
    kind = VerifiesNothing


class TestLosesChunksWhenCompacted(OnSqlite):
    kind = LosesChunksWhenCompacted


class TestNeverShrinks(OnSqlite):
    kind = NeverShrinks


class TestShowsReadersNothingNew(OnSqlite):
    kind = ShowsReadersNothingNew


class TestLetsTwoWrite(OnSqlite):
    kind = LetsTwoWrite
