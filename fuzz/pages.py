"""An LMDB file, read without LMDB: its pages, and all that memcore keeps on them."""

from __future__ import annotations

import torch
from memcore_lmdb.backend import LmdbBackend
from memcore_lmdb.options import LmdbOptions
from memcore_lmdb.pages import Snapshot
from memcore_lmdb.verification import Inspection

from fuzz.target import Target, refused
from memcore.testing import make_chunks


def small_memory(target: Target) -> bytes:
    """Return the file of a memory of some pages that has a past."""
    folder = target.folder / "seed"
    with LmdbBackend(LmdbOptions(path=folder, sync=False, map_size=1 << 16)) as backend:
        for step in range(3):
            backend.store("a", make_chunks(6, seed=step, width=4))
            backend.store(f"b{step}", make_chunks(2, seed=step, width=16, key_size=16))
            backend.write_record("record", bytes([step]) * 100)
            backend.flush()
        backend.evict("a", torch.arange(0, 9, 2))
        backend.drop("b1")
    (file,) = folder.glob("memory-*.lmdb")
    return file.read_bytes()


class Pages(Target):
    """Reads pages, and checks and lists what is on them."""

    def seeds(self) -> list[bytes]:
        """Return the file of a small memory."""
        return [small_memory(self)]

    def read(self, data: bytes) -> None:
        """Read all of a file, as ``verify`` and ``salvage`` do."""
        file = self.folder / "memory-000001.lmdb"
        file.write_bytes(data)

        def check() -> None:
            with Snapshot(file) as snapshot:
                snapshot.check()

        def inspect() -> None:
            with Snapshot(file) as snapshot:
                Inspection(snapshot)

        refused(check)
        refused(inspect)
