"""What backends say that chunks take, against what they take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from memcore.chunk import ChunkBatch
from memcore.errors import MissingDependencyError
from memcore.options import structure_options
from memcore.plugins import registry

HEADS, TOKENS, SIZE, VECTORS = 2, 32, 64, 4
NAMESPACES = ("a", "b")


def chunks(count: int, *, seed: int = 0) -> ChunkBatch:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(count, HEADS, TOKENS, SIZE, generator=generator)
    return ChunkBatch(
        embeddings=keys.unflatten(2, (VECTORS, -1)).mean(dim=3).transpose(1, 2).flatten(2),
        keys=keys.bfloat16(),
        values=torch.randn(count, HEADS, TOKENS, SIZE + 8, generator=generator).bfloat16(),
        starts=torch.arange(count) * TOKENS,
        lengths=torch.full((count,), TOKENS),
        token_ids=torch.arange(count * TOKENS).view(count, TOKENS),
    )


def opened(name: str, **values: object) -> tuple[Any, Any]:
    try:
        kind = registry().load_component("backends", name)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    options: Any = structure_options(kind.Options, values)
    return kind, options


@pytest.mark.parametrize("compression", ["none", "int8"])
@pytest.mark.parametrize("name", ["exact", "faiss", "hnswlib", "lmdb"])
def test_payloads_and_vectors_are_told_byte_by_byte(tmp_path: Path, name: str, compression: str) -> None:
    more = {"path": str(tmp_path / "memory")} if name == "lmdb" else {}
    kind, options = opened(name, compression=compression, **more)
    told = kind.footprint(options, chunks(1), 30, len(NAMESPACES))
    with kind(options) as backend:
        for namespace in NAMESPACES:
            backend.store(namespace, chunks(30))
        assert backend.nbytes() == told.payload + told.vectors
        assert told.vectors == sum(backend.fetch(each, backend.ids(each)).embeddings.nbytes for each in NAMESPACES)


@pytest.mark.parametrize("compression", ["none", "int8"])
@pytest.mark.parametrize("count", [40, 400])
def test_a_compacted_file_is_as_large_as_told(tmp_path: Path, count: int, compression: str) -> None:
    kind, options = opened("lmdb", path=str(tmp_path / "memory"), compression=compression, sync=False)
    told = kind.footprint(options, chunks(1), count, len(NAMESPACES))
    with kind(options) as backend:
        for namespace in NAMESPACES:
            for part in range(4):  # blocks are joined and written anew
                backend.store(namespace, chunks(count // 4, seed=part))
                backend.flush()
        backend.compact()
        assert backend.disk_bytes() == pytest.approx(told.disk, rel=0.05)
    assert told.disk == told.payload + told.vectors + told.index


def test_a_file_that_was_written_in_pieces_is_not_much_larger(tmp_path: Path) -> None:
    kind, options = opened("lmdb", path=str(tmp_path / "memory"), sync=False)
    with kind(options) as backend:
        for namespace in NAMESPACES:
            for part in range(20):
                backend.store(namespace, chunks(20, seed=part))
                backend.flush()
        assert backend.disk_bytes() < 1.5 * kind.footprint(options, chunks(1), 400, len(NAMESPACES)).disk


def test_what_lmdb_needs_in_memory_is_bounded(tmp_path: Path) -> None:
    kind, options = opened("lmdb", path=str(tmp_path / "memory"))
    small, large = (kind.footprint(options, chunks(1), count, 1) for count in (100, 1_000_000))
    assert small.ram < 3 * (small.payload + small.vectors)
    assert large.ram == 32 * 1_000_000 + options.write_buffer


def stored(name: str, **values: object) -> Any:
    """Return a backend's index with ``COUNT`` chunks in it, and what it says of them."""
    kind, options = opened(name, exact_below=0, **values)
    backend = kind(options)
    backend.store("a", chunks(COUNT))
    backend.retrieve("a", torch.randn(1, HEADS * SIZE), 3)  # builds the index
    return backend._namespaces["a"].index.vectors, kind.footprint(options, chunks(1), COUNT, 1)


COUNT = 300
PLACES = 16 * COUNT
"""Bytes of the table's ids and of where payloads are."""


def test_hnswlibs_graph_takes_what_was_told() -> None:
    vectors, told = stored("hnswlib")
    beside = COUNT * VECTORS * (40 + 4 + 8 + 40)  # what the file does not hold
    kind, options = opened("hnswlib", exact_below=0)
    nearly_empty = kind.footprint(options, chunks(1), 1, 1).index
    assert vectors._graph.index_file_size() + beside == pytest.approx(told.index - PLACES - nearly_empty, rel=0.02)
    # Heap that was free before is used again, so the process grows by a little less.
    assert growth_by_an_empty_graph() == pytest.approx(nearly_empty, rel=0.2)


def growth_by_an_empty_graph() -> float:
    """Return the bytes by which the process grows for a graph of hnswlib's with nothing in it, the mean of many."""
    hnswlib = pytest.importorskip("hnswlib")
    process, count = psutil.Process(), 40
    before = process.memory_info().rss
    graphs = [hnswlib.Index("ip", 4) for _ in range(count)]
    for graph in graphs:
        graph.init_index(max_elements=1)
    return (process.memory_info().rss - before) / count


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_faisss_index_takes_what_was_told(index: str) -> None:
    faiss = pytest.importorskip("faiss")
    vectors, told = stored("faiss", index=index, device="cpu", ef=64, nprobe=4)
    assert faiss.serialize_index(vectors._index).nbytes == pytest.approx(told.index - PLACES, rel=0.05)


def test_up_to_a_number_of_vectors_there_is_no_index() -> None:
    kind, options = opened("faiss", exact_below=1000 * VECTORS)
    few, more = (kind.footprint(options, chunks(1), count, 1) for count in (1000, 1001))
    assert few.index == 16 * 1000
    assert more.index > 1001 * VECTORS * HEADS * SIZE * 4


def test_what_is_on_a_gpu_is_told_apart() -> None:
    like = chunks(1)
    kind, options = opened("exact", device="cuda")
    on_gpu = kind.footprint(options, like, 100, 1)
    assert on_gpu.gpu == on_gpu.payload + on_gpu.vectors
    assert on_gpu.ram == 16 * 100
    kind, options = opened("faiss", device="cuda", index="flat")
    index = kind.footprint(options, like, 2000, 1)
    assert index.gpu == 2000 * VECTORS * HEADS * SIZE * 4 + options.temp_memory
    assert index.ram == index.payload + index.vectors + 16 * 2000


@pytest.mark.parametrize(("index", "size"), [("ivfpq", 32 + 8), ("cagra", 8 * HEADS * SIZE + 256)])
def test_the_size_of_other_indexes_is_that_of_the_documentation(index: str, size: int) -> None:
    kind, options = opened("faiss", index=index)
    told = kind.footprint(options, chunks(1), 100_000, 1)
    assert (told.index - 16 * 100_000) / (100_000 * VECTORS) == pytest.approx(size, rel=0.05)


def test_a_backend_that_does_not_say_is_an_error() -> None:
    from memcore import BackendError, MemoryBackend

    with pytest.raises(BackendError, match="does not say what chunks take"):
        MemoryBackend.footprint(None, chunks(1), 1, 1)
