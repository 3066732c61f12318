"""Raw libraries with what memcore promises beside a search: the least that one call of a backend can take.

``backends.py --checked`` compares with these. What is promised: numbers that are not finite are refused, one call at a
time goes in, chunks keep their token ids, positions and lengths, and are known by ids of their own. The columns for
that are as large from the start as they will be, and nothing else is checked, so a backend does more.
"""

from __future__ import annotations

from threading import RLock

import torch
from raw_libraries import Lmdb, RawLibrary
from torch import Tensor
from xxhash import xxh3_64_intdigest

from memcore.backend_checks import all_finite
from memcore.chunk import ChunkBatch
from memcore.errors import BackendError


class Checked(RawLibrary):
    """A raw library, used carefully."""

    def __init__(self, raw: RawLibrary) -> None:
        self.raw = raw
        self.settings = raw.settings
        self.stored = 0
        self.ids = torch.empty(raw.count, dtype=torch.int64)
        self.columns: dict[str, Tensor] = {}
        self.lock = RLock()

    def store(self, chunks: ChunkBatch) -> None:
        """Check and store."""
        with self.lock:
            if not all_finite(chunks.embeddings):
                raise BackendError("embeddings must be finite")
            new = torch.arange(self.stored, self.stored + len(chunks))
            self.ids[self.stored : self.stored + len(chunks)].copy_(new)
            self.keep(chunks)
            self.raw.store(chunks)
            self.stored += len(chunks)

    def keep(self, chunks: ChunkBatch) -> None:
        """Keep what the library has no place for."""
        for name in ("token_ids", "starts", "lengths"):
            column = getattr(chunks, name)
            if name not in self.columns:
                self.columns[name] = torch.empty((self.raw.count, *column.shape[1:]), dtype=column.dtype)
            self.columns[name][self.stored : self.stored + len(chunks)].copy_(column)

    def add(self, vectors: Tensor) -> None:
        """Add vectors."""
        self.raw.add(vectors)

    def finish(self) -> None:
        """Do what is left to do before a search."""
        self.raw.finish()

    def search(self, queries: Tensor, top_k: int) -> Tensor:
        """Check and search, and return ids."""
        with self.lock:
            if not all_finite(queries):
                raise BackendError("queries must be finite")
            return self.ids.take(self.raw.search(queries, top_k))

    def close(self) -> None:
        """Release files."""
        self.raw.close()


class CheckedLmdb(Checked):
    """LMDB, which keeps all of a chunk, and a checksum of each of its parts.

    What is stored is held until it is committed: a commit that fails, as the disk is full, loses nothing.
    """

    def __init__(self, raw: Lmdb) -> None:
        super().__init__(raw)
        self.lmdb = raw
        raw.held = []

    def keep(self, chunks: ChunkBatch) -> None:
        """Put what the raw side leaves out."""
        large = [tensor.view(torch.uint8).flatten(1).numpy() for tensor in (chunks.keys, chunks.values)]
        vectors, token_ids = chunks.embeddings.numpy(), chunks.token_ids.numpy()
        for row, (start, length) in enumerate(zip(chunks.starts.tolist(), chunks.lengths.tolist(), strict=True)):
            checksums = [xxh3_64_intdigest(part[row]) for part in (*large, vectors, token_ids)]
            head = b"".join(number.to_bytes(8, "little") for number in (*checksums, start, length))
            self.lmdb.put(b"h"[0], self.stored + row, memoryview(head + token_ids[row].tobytes()))


def checked(raw: RawLibrary) -> Checked:
    """Return a raw library that is used carefully."""
    return CheckedLmdb(raw) if isinstance(raw, Lmdb) else Checked(raw)
