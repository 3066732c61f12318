"""The libraries under memcore's backends, used as one would without memcore: what ``backends.py`` compares with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from memcore.chunk import ChunkBatch

_COMMIT_BYTES: Final = 256 << 20
"""What goes into one LMDB transaction, as much as memcore's backend holds back."""


class RawLibrary(ABC):
    """Vectors in a library's index, and payloads copied to wherever this library leaves them.

    Payloads are copied into two tensors of the right size, which is the least that keeps them.

    Args:
        size: ``E``.
        count: vectors that will come, which memcore is not told.
        settings: of the index, those that memcore's backend has.
        folder: an empty one.
    """

    def __init__(self, size: int, count: int, settings: dict[str, Any], folder: Path) -> None:
        self.size = size
        self.count = count
        self.settings = settings
        self.payload: list[Tensor] = []
        self.stored = 0

    def store(self, chunks: ChunkBatch) -> None:
        """Add the vectors, keys and values of chunks that have one vector each."""
        payload = (chunks.keys, chunks.values)
        if not self.payload:
            self.payload = [torch.empty((self.count, *new.shape[1:]), dtype=new.dtype) for new in payload]
        for held, new in zip(self.payload, payload, strict=True):
            held[self.stored : self.stored + len(new)].copy_(new)
        self.stored += len(chunks)
        self.add(chunks.embeddings[:, 0])

    @abstractmethod
    def add(self, vectors: Tensor) -> None:
        """Add ``[n, E]`` vectors."""

    def finish(self) -> None:  # noqa: B027  # most have nothing left to do
        """Do what is left to do before a search."""

    @abstractmethod
    def search(self, queries: Tensor, top_k: int) -> Tensor:
        """Return the numbers of the best vectors, ``[Q, top_k]``, in the order of storing."""

    def close(self) -> None:  # noqa: B027
        """Release files."""


class Torch(RawLibrary):
    """A matrix, and brute force."""

    def __init__(self, size: int, count: int, settings: dict[str, Any], folder: Path) -> None:
        super().__init__(size, count, settings, folder)
        self.matrix = torch.empty(count, size)
        self.used = 0

    def add(self, vectors: Tensor) -> None:
        """Add vectors."""
        self.matrix[self.used : self.used + len(vectors)].copy_(vectors)
        self.used += len(vectors)

    def search(self, queries: Tensor, top_k: int) -> Tensor:
        """Search."""
        return (queries @ self.matrix[: self.used].T).topk(top_k, dim=1).indices


class Hnswlib(RawLibrary):
    """hnswlib's graph, by inner product."""

    def __init__(self, size: int, count: int, settings: dict[str, Any], folder: Path) -> None:
        import hnswlib

        super().__init__(size, count, settings, folder)
        self.index: Any = hnswlib.Index("ip", size)
        self.index.init_index(count, M=settings["M"], ef_construction=settings["ef_construction"], random_seed=0)
        self.index.set_ef(settings["ef"])

    def add(self, vectors: Tensor) -> None:
        """Add vectors."""
        self.index.add_items(vectors.numpy(), num_threads=1)

    def search(self, queries: Tensor, top_k: int) -> Tensor:
        """Search."""
        labels, _ = self.index.knn_query(queries.numpy(), top_k, num_threads=1)
        return torch.from_numpy(labels.astype("int64"))


class Faiss(RawLibrary):
    """An index of faiss, by inner product."""

    def __init__(self, size: int, count: int, settings: dict[str, Any], folder: Path) -> None:
        import faiss

        super().__init__(size, count, settings, folder)
        faiss.omp_set_num_threads(1)
        self.index: Any = self.new_index(faiss)

    @abstractmethod
    def new_index(self, faiss: Any) -> Any:
        """Make the index."""

    def add(self, vectors: Tensor) -> None:
        """Add vectors."""
        self.index.add(vectors.numpy())

    def search(self, queries: Tensor, top_k: int) -> Tensor:
        """Search."""
        return torch.from_numpy(self.index.search(queries.numpy(), top_k)[1])


class FaissFlat(Faiss):
    """``IndexFlatIP``."""

    def new_index(self, faiss: Any) -> Any:
        """Make it."""
        return faiss.IndexFlatIP(self.size)


class FaissHnsw(Faiss):
    """``IndexHNSWFlat``."""

    def new_index(self, faiss: Any) -> Any:
        """Make it."""
        index = faiss.IndexHNSWFlat(self.size, self.settings["M"], faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = self.settings["ef_construction"]
        index.hnsw.efSearch = self.settings["ef"]
        return index


class FaissIvf(Faiss):
    """``IndexIVFFlat``: vectors are kept until all are there, then it is trained with some and gets all.

    It has as many lists and looks at as many as memcore's backend does, which had to find out how many that should be.
    """

    def __init__(self, size: int, count: int, settings: dict[str, Any], folder: Path) -> None:
        super().__init__(size, count, settings, folder)
        self.matrix = torch.empty(count, size)
        self.used = 0

    def new_index(self, faiss: Any) -> Any:
        """Make it."""
        self.lists = max(1, round(2 * self.count**0.5))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(self.size), self.size, self.lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.min_points_per_centroid = 1
        return index

    def add(self, vectors: Tensor) -> None:
        """Add vectors."""
        self.matrix[self.used : self.used + len(vectors)].copy_(vectors)
        self.used += len(vectors)

    def finish(self) -> None:
        """Train with some and add all."""
        sample = torch.randperm(self.used, generator=torch.Generator().manual_seed(0))[: 50 * self.lists]
        self.index.train(self.matrix[sample].numpy())
        self.index.add(self.matrix.numpy())

    def search(self, queries: Tensor, top_k: int) -> Tensor:
        """Search."""
        self.index.nprobe = self.settings["nprobe"]
        return super().search(queries, top_k)


class Lmdb(RawLibrary):
    """LMDB holds vectors and payloads; it has no search, so brute force over the vectors in memory stands for one.

    Attributes:
        held: keys and values that are put when it commits; None to put each at once.
    """

    def __init__(self, size: int, count: int, settings: dict[str, Any], folder: Path) -> None:
        import lmdb

        super().__init__(size, count, settings, folder)
        self.environment: Any = lmdb.open(str(folder / "raw"), map_size=1 << 36)
        self.transaction: Any = self.environment.begin(write=True)
        self.seen: list[Tensor] = []
        self.waiting = 0
        self.held: list[tuple[bytes, bytes]] | None = None

    def store(self, chunks: ChunkBatch) -> None:
        """Put every tensor of every chunk under a key of its own."""
        vectors = chunks.embeddings[:, 0]
        parts = [
            tensor.view(torch.uint8).flatten(1).numpy() for tensor in (vectors.contiguous(), chunks.keys, chunks.values)
        ]
        for chunk in zip(*parts, strict=True):
            for name, part in zip(b"ekv", chunk, strict=True):
                self.put(name, self.stored, memoryview(part))
            self.stored += 1
        self.add(vectors)
        if self.waiting > _COMMIT_BYTES:
            self.finish()

    def put(self, name: int, chunk: int, part: memoryview) -> None:
        """Put a part of a chunk, or hold a copy of it until there is a commit."""
        key = bytes((name,)) + chunk.to_bytes(8, "big")
        if self.held is None:
            self.transaction.put(key, part)
        else:
            self.held.append((key, bytes(part)))
        self.waiting += part.nbytes

    def add(self, vectors: Tensor) -> None:
        """Remember which they are, without a copy."""
        self.seen.append(vectors)

    def finish(self) -> None:
        """Commit."""
        for key, part in self.held or ():
            self.transaction.put(key, part)
        self.transaction.commit()
        self.held = None if self.held is None else []
        self.transaction = self.environment.begin(write=True)
        self.waiting = 0

    def search(self, queries: Tensor, top_k: int) -> Tensor:
        """Compare with all."""
        if len(self.seen) > 1:
            self.seen = [torch.cat(self.seen)]
        return (queries @ self.seen[0].T).topk(top_k, dim=1).indices

    def close(self) -> None:
        """Close the file."""
        self.transaction.abort()
        self.environment.close()


RAW: Final[dict[str, type[RawLibrary]]] = {
    "exact": Torch,
    "hnswlib": Hnswlib,
    "faiss flat": FaissFlat,
    "faiss ivf": FaissIvf,
    "faiss hnsw": FaissHnsw,
    "lmdb": Lmdb,
}
"""What each of memcore's ways to keep chunks is compared with."""
