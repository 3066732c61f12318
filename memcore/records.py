"""Named values beside the chunks of a memory bank."""

from __future__ import annotations

from threading import RLock

from memcore.backend import PersistentBackend
from memcore.uninterrupted import uninterrupted


class Records:
    """Small values by name, kept by the backend if what it holds outlives the process, else in memory.

    Args:
        backend: the bank's, if it persists.
        lock: the bank's, which lets one call in at a time.
    """

    def __init__(self, backend: PersistentBackend | None, lock: RLock) -> None:
        self._backend = backend
        self._lock = lock
        self._kept: dict[str, bytes] = {}

    def names(self) -> list[str]:
        """Return all names, sorted."""
        with self._lock:
            return sorted(self._kept) if self._backend is None else self._backend.record_names()

    def read(self, name: str) -> bytes | None:
        """Return a value, None if there is none of that name.

        Raises:
            CorruptedError: it cannot be read.
        """
        with self._lock:
            return self._kept.get(name) if self._backend is None else self._backend.read_record(name)

    def write(self, name: str, value: bytes) -> None:
        """Keep a value in place of what has that name; durable with the bank's next ``flush``.

        Raises:
            ReadOnlyError: the backend is read-only.
        """
        with self._lock, uninterrupted:
            if self._backend is None:
                self._kept[name] = value
            else:
                self._backend.write_record(name, value)

    def drop(self, name: str) -> None:
        """Remove a value; do nothing if there is none.

        Raises:
            ReadOnlyError: the backend is read-only.
        """
        with self._lock, uninterrupted:
            if self._backend is None:
                self._kept.pop(name, None)
            else:
                self._backend.drop_record(name)
