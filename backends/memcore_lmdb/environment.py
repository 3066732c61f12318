"""The LMDB environment of a folder: one for all instances of this process, grown, reopened and compacted as needed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from threading import RLock
from time import perf_counter
from types import TracebackType
from typing import Any, Final, TypeVar

import lmdb

from memcore.errors import BackendError, CorruptedError
from memcore.files import sync
from memcore_lmdb import events
from memcore_lmdb.explanation import explanation
from memcore_lmdb.folder import (
    UNFINISHED_COPY,
    current_file,
    first_file,
    next_file,
    prepare_folder,
    remove_leftovers,
)
from memcore_lmdb.format import COUNTER, HEADER, check_header, seal, write_header
from memcore_lmdb.opening import SLACK, Writing, file_size, open_file
from memcore_lmdb.pages import Snapshot
from memcore_lmdb.registry import environments, registering
from memcore_lmdb.wiping import wipe_gaps

T = TypeVar("T")

_TRIES: Final = 5


class Environment:
    """What all instances on one folder share in this process, as LMDB must not open a file twice in one.

    No transaction outlives the method that began it, and ``lock`` lets one in at a time. So nothing is mapped into any
    hands when the map moves or the process forks. Views of values end with the ``with`` block that gave them.

    Use :meth:`open` and, as often, :meth:`close`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = RLock()
        self.users = 0
        self._writing: Writing | None = None
        self._env: lmdb.Environment | None = None
        self._file = first_file(folder)
        self._last_txn = 0
        self._trusting = False

    @classmethod
    def open(cls, folder: Path, writing: Writing | None = None, *, trusting: bool = False) -> Environment:
        """Open the memory in a folder.

        Args:
            folder: where it is; made with an empty memory in it if ``writing``.
            writing: how to write, or None to read only. The caller makes sure that there is one writer.
            trusting: whether the pages that LMDB relies on need not be checked, if this is the first to open it.

        Raises:
            BackendError: it cannot be opened.
            CorruptedError: what is there is no memory, or a damaged one.
        """
        place = os.path.realpath(folder)
        while True:
            with registering:
                found = environments.setdefault(place, cls(folder))
            with found.lock:
                if environments.get(place) is not found:
                    continue  # its last user has just closed it
                try:
                    if writing is not None:
                        prepare_folder(folder)
                        found._trusting = trusting
                        found._write_from_now_on(writing)
                    elif found._env is None:
                        found._trusting = trusting
                        found._open()
                except BaseException:
                    found._forget_if_unused()
                    raise
                found.users += 1
                return found

    def close(self, *, writer: bool) -> None:
        """Let go of it; the last one out closes it."""
        with self.lock:
            self.users -= 1
            if writer:
                self._writing = None
            self._forget_if_unused()

    @property
    def file(self) -> Path:
        """The file that is open; compaction puts another in its place, in which transactions are counted anew."""
        return self._file

    def read(self) -> AbstractContextManager[Any]:
        """Give a transaction that reads what was last committed; its values are views, for as long as the block.

        Raises:
            CorruptedError: LMDB stumbles over the file.
            BackendError: LMDB fails in another way.
        """
        return _Reading(self)

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """Give what was last committed, to be read without LMDB, for as long as the block.

        Raises:
            CorruptedError: the file is none of LMDB's.
            BackendError: it cannot be read.
        """
        for _ in range(_TRIES):
            with self.read() as txn:  # which keeps its pages from being used again
                try:
                    snapshot = Snapshot(self._file, txn.id())
                except LookupError:
                    continue  # two commits came between
                with snapshot:
                    yield snapshot
                return
        raise BackendError(f"{self._file} is written to so often that it cannot be read; try again")

    def write(self, change: Callable[[Any], T], size: int) -> T:
        """Call ``change`` with a transaction, commit, and return what it returned.

        Args:
            change: may be called again after the map has grown, so it must change nothing else.
            size: bytes that it will write, about.

        Raises:
            BackendError: disk or map are full, another program has written, or LMDB fails; nothing is written.
        """
        begun = perf_counter()
        with self.lock, self._explained():
            self._make_room(size)
            while True:
                try:
                    self._clear_readers()  # those that were killed would keep what is free from being used
                    with self._opened().begin(write=True, buffers=True) as txn:
                        self._check_alone(txn)
                        result = change(txn)
                    self._last_txn = self._opened().info()["last_txnid"]
                    events.COMMITTED.log(path=str(self._file), bytes=size, seconds=perf_counter() - begun)
                    return result
                except lmdb.MapFullError:
                    self._grow(2 * self._opened().info()["map_size"])
                except lmdb.MapResizedError:
                    self._opened().set_mapsize(0)
                except lmdb.Error as error:
                    # After an error of the disk LMDB may refuse everything until the file is opened again.
                    expected = self._last_txn + 1
                    self._shut()
                    self._open()
                    events.REOPENED.log(path=str(self._file), error=str(error))
                    if self._last_txn == expected:
                        return result  # it had committed before it failed
                    raise

    def compact(self) -> None:
        """Write the file anew without what is free in it or was deleted, and take that one from now on.

        Raises:
            BackendError: there is no room for a second file; everything is as it was.
        """
        begun = perf_counter()
        with self.lock, self._explained():
            before = self._disk_bytes()
            copy, target = self.folder / UNFINISHED_COPY, next_file(self._file)
            try:
                with open(copy, "wb") as file:
                    self._opened().copyfd(file.fileno(), compact=True)
                    wipe_gaps(copy, file.fileno())
                    os.fsync(file.fileno())
                os.rename(copy, target)
            except BaseException:
                copy.unlink(missing_ok=True)
                raise
            try:
                sync(self.folder)
            finally:  # from now on the new file is the memory, and nothing may be written to the old one any more
                self._shut()
                self._open()
            remove_leftovers(self._file)
            seconds = perf_counter() - begun
            events.COMPACTED.log(path=str(self.folder), bytes_before=before, bytes=self._disk_bytes(), seconds=seconds)

    def disk_bytes(self) -> int:
        """Return the bytes of the file that were ever written to."""
        with self.read():
            return self._disk_bytes()

    def _disk_bytes(self) -> int:
        env = self._opened()
        size: int = env.stat()["psize"] * (env.info()["last_pgno"] + 1)
        return size

    def _opened(self) -> Any:
        if self._env is None:
            self._open()  # it could not be opened again after an error; perhaps it can now
        return self._env

    def _forget_if_unused(self) -> None:
        if not self.users:
            with registering:
                for place in [place for place, found in environments.items() if found is self]:
                    del environments[place]
            self._shut()

    def _write_from_now_on(self, writing: Writing) -> None:
        """Open the file for writing, if it is open already: once more."""
        self._shut()
        self._writing = writing
        try:
            self._open()
            remove_leftovers(self._file)
        except BaseException:
            self._writing = None
            self._shut()
            if self.users:
                self._open()
            raise

    def _open(self) -> None:
        """Open the current file.

        Compaction by another process may replace it at any time, so what is not there is looked for again.
        """
        for _ in range(_TRIES):
            file = current_file(self.folder)
            if file is None and self._writing is None:
                raise BackendError(f"there is no memory in {self.folder}; open it for writing (not read_only) first")
            self._file = file or first_file(self.folder)
            with self._explained():
                try:
                    self._env = open_file(self._file, self._writing, create=file is None)
                except FileNotFoundError:
                    continue
            try:
                with self._explained():
                    self._check()
            except BaseException:
                self._shut()
                raise
            events.OPENED.log(path=str(self._file), bytes=self._disk_bytes(), read_only=self._writing is None)
            return
        raise BackendError(f"{self._file} is there and cannot be found when it is opened")

    def _check(self) -> None:
        """Raise unless the file is a whole memory; write the header of a new one."""
        env = self._opened()
        self._clear_readers()
        with self._begin() as txn:
            stat, info = txn.stat(), env.info()
            missing = (info["last_pgno"] + 1) * stat["psize"] - file_size(self._file)
            # Of a new file only the first two pages may be there, and nothing is read from them.
            if stat["entries"] and missing > 0:
                raise CorruptedError(f"{self._file} is cut short: {missing} bytes are missing; restore it from a copy")
            self._last_txn = info["last_txnid"]
            if not self._trusting:
                self._check_pages()
            empty = not stat["entries"]
            if not empty:
                check_header(txn.get(HEADER), str(self._file))
        if empty and self._writing is None:
            raise BackendError(f"{self._file} is new and nothing was written to it; open it for writing first")
        if empty:
            self.write(_write_header, 0)
            sync(self.folder)

    def _check_pages(self) -> None:
        """Raise if LMDB might stumble over what it finds: it can end the process."""
        with self.snapshot() as snapshot:
            problems = snapshot.check()
        if problems:
            more = f", and {len(problems) - 1} problems more" if len(problems) > 1 else ""
            raise CorruptedError(
                f"{self._file} is damaged: {problems[0]}{more}. `memcore memory verify {self.folder}` lists what is "
                f"lost, `memcore memory salvage {self.folder} TARGET` copies what is sound; or restore it from a copy"
            )

    def _begin(self) -> Any:
        """Begin to read, from the current file and with a map as large as it is."""
        if self._writing is None and not os.access(self._file, os.F_OK):  # half of what os.path.exists takes
            self._shut()  # another process has compacted
            self._open()
            events.FOLLOWED.log(path=str(self._file))
        for _ in range(_TRIES):
            env = self._opened()
            try:
                return env.begin(buffers=True)
            except lmdb.MapResizedError:
                env.set_mapsize(0)  # another process has grown it
            except lmdb.ReadersFullError:
                if not self._clear_readers():
                    raise
        return self._opened().begin(buffers=True)

    def _check_alone(self, txn: Any) -> None:
        if txn.id() != self._last_txn + 1:
            raise BackendError(
                f"another program has written to {self._file} while this one had it open for writing; close and reopen"
            )

    def _make_room(self, size: int) -> None:
        env = self._opened()
        info = env.info()
        needed = (info["last_pgno"] + 1) * env.stat()["psize"] + size + size // 4 + SLACK
        if needed > info["map_size"]:
            with contextlib.suppress(lmdb.MapFullError):  # what is free inside may do
                self._grow(needed)
        # LMDB does not write pages that a transaction has freed again, and a file that ends before them looks as if it
        # were cut short. None of them lies beyond the map, nor may the file.
        most = min(needed, self._opened().info()["map_size"])
        if file_size(self._file) < most:
            os.truncate(self._file, most)

    def _grow(self, needed: int) -> None:
        """Double the map until it has the bytes needed."""
        assert self._writing is not None
        size, limit = self._opened().info()["map_size"], self._writing.max_map_size
        grown = size
        while grown < needed:
            grown *= 2
        grown = grown if limit is None else min(grown, limit)
        if grown <= size:
            raise lmdb.MapFullError(f"it has reached max_map_size = {limit} bytes; allow more, or evict and compact")
        self._opened().set_mapsize(grown)
        events.GROWN.log(path=str(self._file), map_bytes=grown, map_bytes_before=size)

    def _clear_readers(self) -> int:
        """Free the places of readers that were killed, and return how many."""
        cleared: int = self._opened().reader_check()
        if cleared:
            events.READERS_CLEARED.log(path=str(self._file), readers=cleared)
        return cleared

    def _shut(self) -> None:
        env, self._env = self._env, None
        if env is not None:
            env.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what LMDB and the operating system raise into memcore's errors."""
        try:
            yield
        except (lmdb.Error, OSError) as error:
            self._explain(error)
            raise

    def _explain(self, error: BaseException | None) -> None:
        """Raise memcore's error in place of one of LMDB or the operating system; return if it is none of those."""
        if isinstance(error, FileNotFoundError) and self._env is None:
            return  # it is looked for again
        if isinstance(error, (lmdb.Error, OSError)):
            raise explanation(error, self._file) from error

    def abandon(self) -> None:
        """Close it in a forked child, where it must not be used, so that the child can open the file itself."""
        self.users = 0
        self._writing = None
        self._shut()


class _Reading(AbstractContextManager[Any]):
    """What :meth:`Environment.read` gives: a class, as generators take longer than many a read."""

    __slots__ = ("_environment", "_txn")

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def __enter__(self) -> Any:
        environment = self._environment
        environment.lock.acquire()
        try:
            self._txn = environment._begin()
        except BaseException as error:
            try:
                environment._explain(error)
            finally:
                environment.lock.release()
            raise
        return self._txn

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._txn.abort()
            self._environment._explain(error)
        finally:
            self._environment.lock.release()


def _write_header(txn: Any) -> None:
    txn.put(HEADER, write_header())
    txn.put(COUNTER, seal((1).to_bytes(8, "little")))
