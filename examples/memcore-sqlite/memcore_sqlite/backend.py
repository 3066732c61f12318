"""The backend ``sqlite``: chunks and records in the tables of one file, searched by comparing every vector."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Final

import attrs
import torch
from torch import Tensor

from memcore import (
    ChunkBatch,
    ConfigError,
    Damage,
    PersistentBackend,
    SearchResult,
    UnknownChunkError,
    UnknownNamespaceError,
)
from memcore.backend_checks import check_embeddings, check_ids, check_queries
from memcore.chunk import NO_CHUNK
from memcore_sqlite.file import SqliteFile
from memcore_sqlite.rows import Layout, Row, to_batch, to_rows, to_vectors

_BLOCK: Final = 1024
"""Chunks whose embeddings are in memory at a time during a search."""

_ROW: Final = ", ".join(field.name for field in attrs.fields(Row))


@attrs.frozen(kw_only=True)
class SqliteOptions:
    """Options of the ``sqlite`` backend.

    Attributes:
        path: the file, made if it is not there.
        read_only: whether nothing may be written.
        timeout: seconds to wait for another process to let go of the file.
    """

    path: Path
    read_only: bool = False
    timeout: float = attrs.field(default=5.0, validator=attrs.validators.ge(0))


@attrs.frozen
class _Namespace:
    number: int
    next_id: int
    layout: Layout


class SqliteBackend(PersistentBackend):
    """Keeps everything in one SQLite file, and nothing in memory.

    One process writes at a time. Any number may read, and see what was flushed last.

    Args:
        options: :class:`SqliteOptions`.

    Raises:
        BackendError: the path cannot be used, or another process writes there.
        CorruptedError: the file is something else, or of another version.
    """

    Options: ClassVar[type] = SqliteOptions
    thread_safe: ClassVar[bool] = True

    def __init__(self, options: object) -> None:
        if not isinstance(options, SqliteOptions):
            raise ConfigError(f"SqliteBackend takes SqliteOptions, got {type(options).__qualname__}")
        self._file = SqliteFile(options.path, read_only=options.read_only, timeout=options.timeout)

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written."""
        return self._file.read_only

    def store(self, namespace: str, chunks: ChunkBatch) -> Tensor:
        """Add chunks: see :meth:`memcore.MemoryBackend.store`."""
        with self._file.writing() as database:
            check_embeddings(chunks)
            found = self._find(namespace)
            if found is None:
                database.execute(
                    "INSERT INTO namespaces (name, next_id, layout) VALUES (?, 0, ?)",
                    (namespace.encode(), Layout.of(chunks).to_json()),
                )
                found = self._get(namespace)
            found.layout.check(chunks)
            after = found.next_id + len(chunks)
            database.executemany(
                f"INSERT INTO chunks (namespace, id, {_ROW}, checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    (found.number, found.next_id + place, *attrs.astuple(row), row.checksum)
                    for place, row in enumerate(to_rows(chunks))
                ),
            )
            database.execute("UPDATE namespaces SET next_id = ? WHERE number = ?", (after, found.number))
            return torch.arange(found.next_id, after)

    def retrieve(self, namespace: str, queries: Tensor, top_k: int) -> SearchResult:
        """Find chunks: see :meth:`memcore.MemoryBackend.retrieve`."""
        with self._file.reading() as database, torch.no_grad(), torch.autocast("cpu", enabled=False):
            if top_k < 1:
                raise ConfigError(f"top_k must be at least 1, got {top_k}")
            found = self._find(namespace)
            queries = check_queries(queries, found.layout.E if found else None).cpu()
            ids = torch.full((len(queries), top_k), NO_CHUNK)
            scores = torch.full((len(queries), top_k), -torch.inf)
            if found is None:
                return SearchResult(ids=ids, scores=scores)
            rows = database.execute("SELECT id, embeddings FROM chunks WHERE namespace = ?", (found.number,))
            while block := rows.fetchmany(_BLOCK):
                vectors = to_vectors([embeddings for _, embeddings in block], found.layout)  # [n, V, E]
                products = torch.einsum("qe,nve->qnv", queries, vectors)
                own = torch.tensor([id for id, _ in block]).expand(len(queries), -1)
                scores, places = torch.cat((scores, products.amax(dim=2)), dim=1).topk(top_k, dim=1)
                ids = torch.cat((ids, own), dim=1).gather(1, places)
            return SearchResult(ids=ids, scores=scores)

    def fetch(self, namespace: str, ids: Tensor) -> ChunkBatch:
        """Return chunks: see :meth:`memcore.MemoryBackend.fetch`."""
        with self._file.reading() as database:
            found = self._get(namespace)
            query = f"SELECT {_ROW} FROM chunks WHERE namespace = ? AND id = ?"
            rows = []
            for id in check_ids(ids).tolist():
                values = database.execute(query, (found.number, id)).fetchone()
                if values is None:
                    raise UnknownChunkError(f"no chunk with id {id} in namespace {namespace!r}")
                rows.append(Row(*values))
            return to_batch(rows, found.layout)

    def evict(self, namespace: str, ids: Tensor) -> None:
        """Remove chunks: see :meth:`memcore.MemoryBackend.evict`."""
        with self._file.writing() as database:
            found = self._get(namespace)
            for id in set(check_ids(ids).tolist()):
                gone = database.execute("DELETE FROM chunks WHERE namespace = ? AND id = ?", (found.number, id))
                if not gone.rowcount:
                    raise UnknownChunkError(f"no chunk with id {id} in namespace {namespace!r}")

    def drop(self, namespace: str) -> None:
        """Remove a namespace: see :meth:`memcore.MemoryBackend.drop`."""
        with self._file.writing() as database:
            found = self._find(namespace)
            if found is not None:
                database.execute("DELETE FROM chunks WHERE namespace = ?", (found.number,))
                database.execute("DELETE FROM namespaces WHERE number = ?", (found.number,))

    def copy(self, source: str, target: str) -> None:
        """Copy a namespace, ids and all, without reading it into Python."""
        with self._file.writing() as database:
            if source == target:
                return
            self.drop(target)
            found = self._find(source)
            if found is None:
                return
            number = database.execute(
                "INSERT INTO namespaces (name, next_id, layout) VALUES (?, ?, ?)",
                (target.encode(), found.next_id, found.layout.to_json()),
            ).lastrowid
            columns = f"id, {_ROW}, checksum"
            database.execute(
                f"INSERT INTO chunks (namespace, {columns}) SELECT ?, {columns} FROM chunks WHERE namespace = ?",
                (number, found.number),
            )

    def ids(self, namespace: str) -> Tensor:
        """Return the ids stored: see :meth:`memcore.MemoryBackend.ids`."""
        with self._file.reading() as database:
            found = self._find(namespace)
            query = "SELECT id FROM chunks WHERE namespace = ? ORDER BY id"
            rows = database.execute(query, (found.number,)).fetchall() if found else []
            return torch.tensor([id for (id,) in rows], dtype=torch.int64)

    def namespaces(self) -> list[str]:
        """Return the names of all namespaces, sorted."""
        with self._file.reading() as database:
            return sorted(name.decode() for (name,) in database.execute("SELECT name FROM namespaces"))

    def nbytes(self, namespace: str | None = None) -> int:
        """Return the bytes that embeddings and payloads take."""
        with self._file.reading() as database:
            size = "SELECT total(length(embeddings) + length(key_bytes) + length(value_bytes)) FROM chunks"
            if namespace is None:
                return int(database.execute(size).fetchone()[0])
            found = self._find(namespace)
            return int(database.execute(f"{size} WHERE namespace = ?", (found.number,)).fetchone()[0]) if found else 0

    def flush(self) -> None:
        """Commit: what was stored so far is on the disk when this returns."""
        self._file.flush()

    def write_record(self, name: str, value: bytes) -> None:
        """Keep a value under a name."""
        with self._file.writing() as database:
            database.execute("INSERT OR REPLACE INTO records VALUES (?, ?)", (name.encode(), value))

    def read_record(self, name: str) -> bytes | None:
        """Return the value under a name, None if there is none."""
        with self._file.reading() as database:
            row = database.execute("SELECT value FROM records WHERE name = ?", (name.encode(),)).fetchone()
            return None if row is None else bytes(row[0])

    def drop_record(self, name: str) -> None:
        """Remove a record; do nothing if there is none."""
        with self._file.writing() as database:
            database.execute("DELETE FROM records WHERE name = ?", (name.encode(),))

    def record_names(self) -> list[str]:
        """Return the names of all records, sorted."""
        with self._file.reading() as database:
            return sorted(name.decode() for (name,) in database.execute("SELECT name FROM records"))

    def disk_bytes(self) -> int:
        """Return the size of the file and of the two that SQLite keeps beside it."""
        return self._file.disk_bytes()

    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[Damage]:
        """Compare every chunk with its checksum, and let SQLite check the file."""
        with self._file.reading() as database:
            damage = [
                Damage(problem=problem) for (problem,) in database.execute("PRAGMA quick_check") if problem != "ok"
            ]
            total = database.execute("SELECT count(*) FROM chunks").fetchone()[0]
            rows = database.execute(
                f"SELECT name, id, checksum, {_ROW} FROM chunks JOIN namespaces ON namespace = number"
            )
            for done, (name, id, checksum, *values) in enumerate(rows, start=1):
                if Row(*values).checksum != checksum:
                    damage.append(Damage(namespace=name.decode(), id=id, problem="its bytes do not fit their checksum"))
                if progress is not None:
                    progress(done, total)
            return damage

    def compact(self) -> None:
        """Flush, and write the file anew without its free pages."""
        self._file.compact()

    def close(self) -> None:
        """Flush and close the file. Calling it again does nothing."""
        self._file.close()

    def _find(self, namespace: str) -> _Namespace | None:
        query = "SELECT number, next_id, layout FROM namespaces WHERE name = ?"
        row = self._file.database.execute(query, (namespace.encode(),)).fetchone()
        return None if row is None else _Namespace(row[0], row[1], Layout.from_json(row[2]))

    def _get(self, namespace: str) -> _Namespace:
        found = self._find(namespace)
        if found is None:
            raise UnknownNamespaceError(f"no namespace {namespace!r} in {self._file.path}")
        return found
