"""An LMDB file in its folder, opened and used in every way: what is not refused must not harm."""

from __future__ import annotations

import shutil

import torch
from memcore_lmdb.backend import LmdbBackend
from memcore_lmdb.options import LmdbOptions

from fuzz.pages import small_memory
from fuzz.target import Target, refused
from memcore.bank import MemoryBank
from memcore.eviction_policies import FifoEviction
from memcore.session_store import SessionStore
from memcore.testing import make_chunks
from memcore.testing.chunks import random_queries


class Memories(Target):
    """Opens a file, with LMDB, and reads and writes."""

    def seeds(self) -> list[bytes]:
        """Return the file of a small memory."""
        return [small_memory(self)]

    def read(self, data: bytes) -> None:
        """Use a file for reading and then for writing."""
        folder = self.folder / "memory"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "memory-000001.lmdb").write_bytes(data)
        use(self, LmdbOptions(path=folder, read_only=True))
        use(self, LmdbOptions(path=folder, sync=False, map_size=1 << 16))
        target = self.folder / "salvaged"
        shutil.rmtree(target, ignore_errors=True)
        if not refused(lambda: LmdbBackend.salvage(LmdbOptions(path=folder), target)):
            with LmdbBackend(LmdbOptions(path=target, read_only=True)) as backend:
                assert backend.verify() == []


def use(target: Target, options: LmdbOptions) -> None:
    """Call all methods of a backend on what is in its folder."""
    opened: list[LmdbBackend] = []
    if refused(lambda: opened.append(LmdbBackend(options))):
        return
    (backend,) = opened
    names: list[str] = ["a"]
    refused(lambda: names.extend(backend.namespaces()[:4]))
    refused(backend.verify)
    refused(backend.storage)
    refused(backend.nbytes)
    for name in names:
        refused(lambda name=name: backend.fetch(name, backend.ids(name)[-3:]))  # type: ignore[misc]
        refused(lambda name=name: backend.retrieve(name, random_queries(1), 2))  # type: ignore[misc]
        if not options.read_only:
            refused(lambda name=name: backend.evict(name, backend.ids(name)[:1]))  # type: ignore[misc]
            refused(lambda name=name: backend.store(name, make_chunks(2)))  # type: ignore[misc]
            refused(lambda name=name: backend.copy(name, "copy"))  # type: ignore[misc]
    refused(lambda: use_bank(backend, names))
    if not options.read_only:
        refused(backend.flush)
        refused(backend.compact)
        refused(lambda: backend.drop("a"))
    if refused(backend.close):
        backend._overlay.namespaces.clear()  # what cannot be written must not keep the file open
        backend._overlay.records.clear()
        backend._overlay.dropped.clear()
        backend.close()
    assert torch.is_grad_enabled()


def use_bank(backend: LmdbBackend, names: list[str]) -> None:
    """Call methods of a bank on a backend."""
    bank = MemoryBank(backend, FifoEviction(), capacity=4)
    refused(lambda: SessionStore(bank).infos())
    for name in names:
        refused(lambda name=name: bank.retrieve(name, random_queries(1), 2))  # type: ignore[misc]
        if not backend.read_only:
            refused(lambda name=name: bank.store(name, make_chunks(1)))  # type: ignore[misc]
    refused(bank.flush)
