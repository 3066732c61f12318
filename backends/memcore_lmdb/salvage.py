"""Copying what is sound of a damaged memory to a new one."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs
from filelock import FileLock, Timeout

from memcore.backend import Damage
from memcore.errors import BackendError, CorruptedError
from memcore.files import sync
from memcore_lmdb.blocks import ID, LENGTH, pack_entries
from memcore_lmdb.environment import Environment
from memcore_lmdb.folder import WRITER_LOCK, current_file
from memcore_lmdb.format import BLOCK, COUNTER, NAMESPACE, PAYLOAD, VECTORS, id_key, name_key, seal
from memcore_lmdb.opening import Writing
from memcore_lmdb.pages import Snapshot
from memcore_lmdb.verification import Inspection, Progress, SoundNamespace

_STEP: Final = 32 << 20
"""Bytes written in one transaction, or one value if that is larger."""

Entry = tuple[bytes, bytes]


def salvage(folder: Path, target: Path | None, progress: Progress | None) -> list[Damage]:
    """Copy what is sound, and return what is not.

    Chunks keep their ids. Of what has lost a part, the rest is copied; of a namespace whose description is damaged,
    nothing can be. One whose key is damaged gets another name if one of its own name has come since.

    Args:
        folder: of the memory.
        target: a folder that does not exist or is empty, which is there all at once at the end; None to copy nothing.
        progress: called with (entries read, entries in all).

    Raises:
        BackendError: there is no memory in ``folder``, it is open for writing, or ``target`` cannot be written.
        CorruptedError: nothing of it can be read.
    """
    file = current_file(folder)
    if file is None:
        raise BackendError(f"there is no memory in {folder}")
    if target is not None and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BackendError(f"{target} is there already; name a new folder to copy to")
    lock = FileLock(folder / WRITER_LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BackendError(f"the memory in {folder} is open for writing; close it first") from error
    except OSError:
        pass  # nobody can write there
    try:
        with Snapshot(file) as snapshot:
            inspection = Inspection(snapshot, progress)
            if not inspection.places:
                raise CorruptedError(f"nothing of {file} can be read; restore it from a copy")
            if target is not None:
                _write_as_a_whole(snapshot, inspection, target)
            return inspection.damage
    except OSError as error:
        raise BackendError(f"{folder} cannot be copied: {error}") from error
    finally:
        lock.release()


def _write_as_a_whole(snapshot: Snapshot, inspection: Inspection, target: Path) -> None:
    unfinished = target.with_name(f"{target.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        environment = Environment.open(unfinished, Writing(map_size=1 << 30, max_map_size=None, sync=True))
        try:
            step: list[Entry] = []
            size = 0
            for key, value in _entries(snapshot, inspection):
                step.append((key, value))
                size += len(value)
                if size > _STEP:
                    _put(environment, step, size)
                    step, size = [], 0
            _put(environment, step, size)
        finally:
            environment.close(writer=True)
        os.rename(unfinished, target)
        sync(target.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _put(environment: Environment, entries: list[Entry], size: int) -> None:
    def put(txn: Any) -> None:
        for key, value in entries:
            txn.put(key, value)

    environment.write(put, size)


def _entries(snapshot: Snapshot, inspection: Inspection) -> Iterator[Entry]:
    """Yield what to write: counts and lists as they are without what is damaged, all else as it is."""
    value = functools.partial(_value, snapshot, inspection)
    for key in inspection.records:
        yield key, value(key)
    for number, held in inspection.namespaces.items():
        yield from _namespace_entries(number, inspection.names[number], held, value)
    yield COUNTER, seal((max([0, *inspection.namespaces]) + 1).to_bytes(8, "little"))


def _namespace_entries(number: int, name: str, held: SoundNamespace, value: Any) -> Iterator[Entry]:
    count = tokens = 0
    for first, block in held.blocks.items():
        entries = held.sound(block)
        if not len(entries):
            continue
        count += len(entries)
        tokens += int(entries[:, LENGTH].sum())
        yield id_key(BLOCK, number, first), pack_entries(block.rows, entries)
        yield id_key(VECTORS, number, first), value(id_key(VECTORS, number, first))
        for id in entries[:, ID].tolist():
            yield id_key(PAYLOAD, number, id), value(id_key(PAYLOAD, number, id))
    record = attrs.evolve(held.record, name=name, count=count, tokens=tokens)
    yield name_key(NAMESPACE, name), record.pack()


def _value(snapshot: Snapshot, inspection: Inspection, key: bytes) -> bytes:
    return snapshot.value(inspection.places[key])
