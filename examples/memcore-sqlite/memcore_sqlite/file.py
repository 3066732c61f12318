"""The SQLite file: its tables, and how it is opened."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final

from memcore import BackendError, CorruptedError

if TYPE_CHECKING:
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


def connect(path: Path, *, read_only: bool, timeout: float) -> sqlite3.Connection:
    """Open the file, and make it if it is to be written and not there.

    Args:
        path: the file.
        read_only: whether nothing may be written.
        timeout: seconds to wait for another process to let go of the file.

    Returns:
        A connection that leaves transactions to its user; one has begun unless it is read-only.

    Raises:
        BackendError: the path cannot be used, or another process writes there.
        CorruptedError: the file is something else, or of another version.
    """
    mode = "ro" if read_only else "rwc"
    try:
        if not read_only:
            path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=timeout,
            isolation_level=None,
            check_same_thread=False,
        )
    except (OSError, sqlite3.Error) as error:
        raise BackendError(f"cannot open {path}: {error}") from error
    try:
        _prepare(database, path, read_only)
    except sqlite3.OperationalError as error:
        database.close()
        raise BackendError(f"cannot open {path}: {error}; does another process write there?") from error
    except sqlite3.DatabaseError as error:
        database.close()
        raise CorruptedError(f"{path} is no SQLite file: {error}") from error
    except BaseException:
        database.close()
        raise
    return database


def _prepare(database: sqlite3.Connection, path: Path, read_only: bool) -> None:
    if not read_only:
        # Readers see the last commit while a writer is busy, and a commit is on the disk when it returns.
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("BEGIN IMMEDIATE")
        if not database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            for statement in _TABLES.split(";"):
                database.execute(statement)
            database.execute(f"PRAGMA application_id = {APPLICATION}")
            database.execute(f"PRAGMA user_version = {VERSION}")
            database.execute("COMMIT")
            database.execute("BEGIN IMMEDIATE")
    application = database.execute("PRAGMA application_id").fetchone()[0]
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION:
        raise CorruptedError(f"{path} is an SQLite file of some other program, not a memory")
    if version != VERSION:
        raise CorruptedError(f"{path} is a memory of version {version}; this backend reads version {VERSION}")
