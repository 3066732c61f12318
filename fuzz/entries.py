"""What memcore writes into LMDB, with checksums that fit: names, lists, chunks and uses that were made to harm."""

from __future__ import annotations

import shutil
from pathlib import Path

import lmdb
from memcore_lmdb.format import BLOCK, COUNTER, HEADER, NAMESPACE, RECORD, seal
from memcore_lmdb.options import LmdbOptions
from xxhash import xxh3_64_intdigest

from fuzz.memories import use
from fuzz.pages import small_memory
from fuzz.target import Target


class Entries(Target):
    """Puts values in the place of others, and uses the memory. The first byte chooses the place."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._file = small_memory(self)
        self._values = self._read_values()

    def seeds(self) -> list[bytes]:
        """Return the values of a small memory, without their checksums."""
        return [bytes([place]) + _content(key, value) for place, (key, value) in enumerate(self._values)]

    def read(self, data: bytes) -> None:
        """Use a memory with one value replaced."""
        if not data:
            return
        key, _ = self._values[data[0] % len(self._values)]
        folder = self.folder / "memory"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        file = folder / "memory-000001.lmdb"
        file.write_bytes(self._file)
        with (
            lmdb.open(str(file), subdir=False, lock=False, sync=False, map_size=1 << 24) as env,
            env.begin(write=True) as txn,
        ):
            txn.put(key, _sealed(key, data[1:]))
        use(self, LmdbOptions(path=folder, sync=False, map_size=1 << 16))

    def _read_values(self) -> list[tuple[bytes, bytes]]:
        (file,) = (self.folder / "seed").glob("*.lmdb")
        with lmdb.open(str(file), subdir=False, lock=False) as env, env.begin() as txn:
            return [(bytes(key), bytes(value)) for key, value in txn.cursor()]


def _has_checksum(key: bytes) -> bool:
    return key == COUNTER or (key != HEADER and key[:1] in (NAMESPACE, BLOCK, RECORD, b"p"))


def _content(key: bytes, value: bytes) -> bytes:
    return value[8:] if _has_checksum(key) else value


def _sealed(key: bytes, content: bytes) -> bytes:
    return seal(content) if _has_checksum(key) else content


assert seal(b"")[:8] == xxh3_64_intdigest(b"").to_bytes(8, "little")
