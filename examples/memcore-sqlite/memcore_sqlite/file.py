"""The SQLite file: its tables, and the transactions that make calls whole and flushes durable."""

from __future__ import annotations

import contextlib
import sqlite3
from threading import RLock
from typing import TYPE_CHECKING, Final

from memcore import BackendError, ClosedError, CorruptedError, ReadOnlyError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

APPLICATION: Final = 0x6D656D63  # "memc", in the header of the file
VERSION: Final = 1

# Names are UTF-8 in BLOBs, which are compared byte by byte. Embeddings stand before the payload, so that a search does
# not read over keys and values.
_TABLES: Final = """
CREATE TABLE namespaces (
    number INTEGER PRIMARY KEY,
    name BLOB NOT NULL UNIQUE,
    next_id INTEGER NOT NULL,
    layout TEXT NOT NULL
);
CREATE TABLE chunks (
    namespace INTEGER NOT NULL,
    id INTEGER NOT NULL,
    start INTEGER NOT NULL,
    length INTEGER NOT NULL,
    embeddings BLOB NOT NULL,
    token_ids BLOB NOT NULL,
    key_bytes BLOB NOT NULL,
    value_bytes BLOB NOT NULL,
    checksum INTEGER NOT NULL,
    UNIQUE (namespace, id)
);
CREATE TABLE records (
    name BLOB PRIMARY KEY,
    value BLOB NOT NULL
);
"""


class SqliteFile:
    """An open file. A transaction is under way from one ``flush`` to the next, so other processes cannot write.

    Args:
        path: the file, made if it is to be written and not there.
        read_only: whether nothing may be written.
        timeout: seconds to wait for another process to let go of the file.

    Raises:
        BackendError: the path cannot be used, or another process writes there.
        CorruptedError: the file is something else, or of another version.
    """

    def __init__(self, path: Path, *, read_only: bool, timeout: float) -> None:
        self.path = path
        self.read_only = read_only
        self._lock = RLock()
        self._closed = False
        mode = "ro" if read_only else "rwc"
        try:
            if not read_only:
                path.parent.mkdir(parents=True, exist_ok=True)
            self.database = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={mode}",
                uri=True,
                timeout=timeout,
                isolation_level=None,  # transactions begin and end here, not where sqlite3 thinks they should
                check_same_thread=False,  # the lock sees to that
            )
        except (OSError, sqlite3.Error) as error:
            raise BackendError(f"cannot open {path}: {error}") from error
        try:
            self._prepare()
        except sqlite3.OperationalError as error:
            self.database.close()
            raise BackendError(f"cannot open {path}: {error}; does another process write there?") from error
        except sqlite3.DatabaseError as error:
            self.database.close()
            raise CorruptedError(f"{path} is no SQLite file: {error}") from error
        except BaseException:
            self.database.close()
            raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Show one state of the file for the whole of a call."""
        with self.locked() as database:
            if database.in_transaction:
                yield database
                return
            database.execute("BEGIN")
            try:
                yield database
            finally:
                database.execute("COMMIT")

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Undo what a call did if it raises."""
        with self.locked() as database:
            if self.read_only:
                raise ReadOnlyError(f"{self.path} was opened for reading only")
            if not database.in_transaction:  # another process came between two of ours
                database.execute("BEGIN IMMEDIATE")
            database.execute("SAVEPOINT call")
            try:
                yield database
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK TO call")
                raise
            finally:
                if database.in_transaction:
                    database.execute("RELEASE call")

    @contextlib.contextmanager
    def locked(self) -> Iterator[sqlite3.Connection]:
        """Let one thread in at a time, and make SQLite's errors memcore's."""
        with self._lock:
            if self._closed:
                raise ClosedError(f"{self.path} was closed")
            try:
                yield self.database
            except sqlite3.Error as error:
                raise BackendError(f"{self.path}: {error}") from error

    def flush(self) -> None:
        """Commit: what was written so far is on the disk when this returns."""
        with self.locked() as database:
            if self.read_only:
                return
            if database.in_transaction:
                database.execute("COMMIT")
            database.execute("BEGIN IMMEDIATE")

    def compact(self) -> None:
        """Flush, and write the file anew without its free pages."""
        with self.locked() as database:
            if self.read_only:
                raise ReadOnlyError(f"{self.path} was opened for reading only: it cannot be compacted")
            if database.in_transaction:
                database.execute("COMMIT")
            try:
                database.execute("VACUUM")
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                database.execute("BEGIN IMMEDIATE")

    def disk_bytes(self) -> int:
        """Return the size of the file and of the two that SQLite keeps beside it."""
        with self.locked():
            files = [self.path, *(self.path.with_name(self.path.name + end) for end in ("-wal", "-shm"))]
            return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        """Flush and close. Calling it again does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                if self.database.in_transaction:
                    self.database.execute("COMMIT")
            except sqlite3.Error as error:
                raise BackendError(f"{self.path}: what was not flushed is lost: {error}") from error
            finally:
                self.database.close()

    def _prepare(self) -> None:
        """Make the tables in a new file; check that an old one is ours."""
        database = self.database
        if not self.read_only:
            # Readers see the last commit while a writer is busy, and a commit is on the disk when it returns.
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.execute("BEGIN IMMEDIATE")
            if not database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                for statement in _TABLES.split(";"):
                    database.execute(statement)
                database.execute(f"PRAGMA application_id = {APPLICATION}")
                database.execute(f"PRAGMA user_version = {VERSION}")
                self.flush()
        application = database.execute("PRAGMA application_id").fetchone()[0]
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if application != APPLICATION:
            raise CorruptedError(f"{self.path} is an SQLite file of some other program, not a memory")
        if version != VERSION:
            raise CorruptedError(f"{self.path} is a memory of version {version}; this backend reads version {VERSION}")
