"""The backend against memcore's conformance kit, and what is special about it."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest
import torch
from memcore_sqlite.backend import SqliteBackend, SqliteOptions

from memcore.errors import BackendError, ConfigError, CorruptedError
from memcore.options import structure_options
from memcore.testing import PersistentBackendTests, make_chunks

if TYPE_CHECKING:
    from pathlib import Path

    from memcore.backend import MemoryBackend


class TestContract(PersistentBackendTests):
    def open(self, path: Path) -> SqliteBackend:
        return SqliteBackend(SqliteOptions(path=path / "memory.db", timeout=0.1))

    def reopen(self, path: Path, read_only: bool = False) -> SqliteBackend:
        return SqliteBackend(SqliteOptions(path=path / "memory.db", timeout=0.1, read_only=read_only))

    def raw_payload(self, backend: MemoryBackend, namespace: str, id: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert isinstance(backend, SqliteBackend)
        query = (
            "SELECT key_bytes, value_bytes, length, layout ->> 'H', layout ->> 'dtype' "
            "FROM chunks JOIN namespaces ON namespace = number WHERE name = ? AND id = ?"
        )
        database = sqlite3.connect(backend._file.path)
        keys, values, length, heads, dtype = database.execute(query, (namespace.encode(), id)).fetchone()
        database.close()
        shape = (heads, length, -1)
        keys, values = (torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype)) for data in (keys, values))
        return keys.view(shape), values.view(shape)

    def damage(self, path: Path, namespace: str, id: int) -> None:
        where = "namespace = (SELECT number FROM namespaces WHERE name = ?) AND id = ?"
        database = sqlite3.connect(path / "memory.db")
        (keys,) = database.execute(f"SELECT key_bytes FROM chunks WHERE {where}", (namespace.encode(), id)).fetchone()
        flipped = bytes([keys[0] ^ 1]) + keys[1:]
        with database:
            database.execute(f"UPDATE chunks SET key_bytes = ? WHERE {where}", (flipped, namespace.encode(), id))
        database.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "memory.db").write_text("Dear diary, " * 100)
    with pytest.raises(CorruptedError, match="no SQLite file"):
        SqliteBackend(SqliteOptions(path=tmp_path / "memory.db"))
    assert (tmp_path / "memory.db").read_text().startswith("Dear diary")


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "memory.db") as database:
        database.execute("CREATE TABLE bookmarks (url TEXT)")
    with pytest.raises(CorruptedError, match="some other program"):
        SqliteBackend(SqliteOptions(path=tmp_path / "memory.db"))


def test_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    SqliteBackend(SqliteOptions(path=path)).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 7")
    with pytest.raises(CorruptedError, match="version 7; this backend reads version 1"):
        SqliteBackend(SqliteOptions(path=path))


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot open"):
        SqliteBackend(SqliteOptions(path=tmp_path))


def test_searches_span_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    with SqliteBackend(SqliteOptions(path=tmp_path / "memory.db")) as backend:
        backend.store("a", make_chunks(50))
        whole = backend.retrieve("a", queries, 5)
        monkeypatch.setattr("memcore_sqlite.backend._BLOCK", 7)
        blocks = backend.retrieve("a", queries, 5)
    assert torch.equal(whole.ids, blocks.ids)
    torch.testing.assert_close(whole.scores, blocks.scores)


def test_options_come_from_a_configuration() -> None:
    assert structure_options(SqliteOptions, {"path": "memory.db"}).path.name == "memory.db"
    with pytest.raises(ConfigError, match="path is required"):
        structure_options(SqliteOptions, {})
    with pytest.raises(ConfigError, match="timeout"):
        structure_options(SqliteOptions, {"path": "memory.db", "timeout": -1})
