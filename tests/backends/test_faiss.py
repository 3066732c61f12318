from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import torch

from memcore.errors import BackendError, ConfigError, MemcoreError
from memcore.exact_backend import ExactBackend, ExactOptions
from memcore.testing import BackendTests, make_chunks, select

pytest.importorskip("faiss")

import faiss
from memcore_faiss.backend import FaissBackend, choose_gpu
from memcore_faiss.installation import Installation, installation, resolve_device
from memcore_faiss.options import FaissOptions
from memcore_faiss.plugin import memcore_backends

if TYPE_CHECKING:
    from pathlib import Path

    from memcore.chunk import ChunkBatch

INDEXES = ("flat", "ivf", "ivfpq", "hnsw")
APPROXIMATE = INDEXES[1:]
CPU_ONLY = Installation(wheels=("faiss-cpu 1",), version="1", has_gpu=False, has_cagra=False, gpus=0)
GPU_BUILD = Installation(wheels=("faiss-gpu 1",), version="1", has_gpu=True, has_cagra=False, gpus=0)
CUVS_BUILD = attrs.evolve(GPU_BUILD, wheels=("faiss-gpu-cuvs 1",), has_cagra=True)


def open_backend(**options: Any) -> FaissBackend:
    """Return a backend that always asks the index."""
    return FaissBackend(FaissOptions(device="cpu", **{"exact_below": 0, **options}))


class TestContract(BackendTests):
    def open(self, path: Path) -> FaissBackend:
        return FaissBackend(FaissOptions(device="cpu"))


class TestContractOfFlat(BackendTests):
    def open(self, path: Path) -> FaissBackend:
        return open_backend(index="flat")


class TestContractOfIvf(BackendTests):
    exact = False

    def open(self, path: Path) -> FaissBackend:
        return open_backend(index="ivf")


class TestContractOfCompressedIvf(BackendTests):
    exact = False

    def open(self, path: Path) -> FaissBackend:
        return open_backend(index="ivfpq")


class TestContractOfHnsw(BackendTests):
    exact = False

    def open(self, path: Path) -> FaissBackend:
        return open_backend(index="hnsw")


def large(count: int = 1000, *, offset: float = 0.0, seed: int = 0, vectors: int = 4) -> ChunkBatch:
    """Return chunks whose vectors lie around a hundred points."""
    chunks = make_chunks(count, seed=seed, vectors=vectors, size=64, heads=1, width=1, key_size=1, value_size=1)
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(100, 64, generator=torch.Generator().manual_seed(98))
    around = centres[torch.randint(100, (count, vectors), generator=generator)]
    direction = torch.randn(64, generator=torch.Generator().manual_seed(99))
    return attrs.evolve(chunks, embeddings=around + 0.5 * chunks.embeddings + offset * direction)


QUERIES = large(64, seed=7, vectors=1).embeddings[:, 0]


def recall(backend: FaissBackend, chunks: ChunkBatch, ids: torch.Tensor, queries: torch.Tensor = QUERIES) -> float:
    """Return the share of the eight best chunks that the backend finds; ``ids`` are those of ``chunks``."""
    exact = ExactBackend(ExactOptions())
    exact.store("a", chunks)
    want = ids[exact.retrieve("a", queries, 8).ids]
    got = backend.retrieve("a", queries, 8).ids
    return float((got[:, :, None] == want[:, None, :]).any(dim=2).float().mean())


@pytest.mark.parametrize("index", INDEXES)
@pytest.mark.parametrize("vectors", [1, 4])
@pytest.mark.parametrize("offset", [0.0, 10.0], ids=["centred", "with a large common offset"])
def test_finds_what_exact_search_finds(index: str, vectors: int, offset: float) -> None:
    backend = open_backend(index=index)
    chunks = large(offset=offset, vectors=vectors)
    assert recall(backend, chunks, backend.store("a", chunks)) >= 0.95


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_finds_it_in_data_without_any_structure(index: str) -> None:
    backend = open_backend(index=index)
    chunks = make_chunks(1000, vectors=4, size=64, heads=1, width=1)
    queries = torch.randn(64, 64, generator=torch.Generator().manual_seed(7))
    assert recall(backend, chunks, backend.store("a", chunks), queries) >= 0.95


@pytest.mark.parametrize("index", INDEXES)
@pytest.mark.parametrize("vectors", [1, 3])
def test_scores_are_exact(index: str, vectors: int) -> None:
    backend = open_backend(index=index)
    chunks = large(300, offset=10.0, vectors=vectors)
    backend.store("a", chunks)
    result = backend.retrieve("a", QUERIES, 5)
    want = torch.einsum("qkve,qe->qkv", chunks.embeddings[result.ids], QUERIES).amax(dim=2)
    torch.testing.assert_close(result.scores, want, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("index", INDEXES)
def test_finds_it_after_growth_and_evictions(index: str) -> None:
    backend = open_backend(index=index)
    everything, ids = large(0), torch.empty(0, dtype=torch.int64)
    generator = torch.Generator().manual_seed(3)
    for step in range(6):
        batch = large(150, seed=step)
        everything, ids = join(everything, batch), torch.cat((ids, backend.store("a", batch)))
        backend.retrieve("a", QUERIES, 8)
        keep = torch.rand(len(ids), generator=generator) > 0.3
        backend.evict("a", ids[~keep])
        everything, ids = select(everything, keep), ids[keep]
    assert recall(backend, everything, ids) >= 0.95


@pytest.mark.parametrize("index", INDEXES)
def test_what_was_evicted_is_not_found(index: str) -> None:
    backend = open_backend(index=index)
    chunks = large(600)
    ids = backend.store("a", chunks)
    best = backend.retrieve("a", QUERIES, 8).ids.unique()
    backend.evict("a", best)
    assert not bool(torch.isin(backend.retrieve("a", QUERIES, 8).ids, best).any())
    kept = ids[~torch.isin(ids, best)]
    assert recall(backend, select(chunks, kept), kept) >= 0.95


@pytest.mark.parametrize("index", INDEXES)
def test_a_copy_searches_as_well_and_apart(index: str) -> None:
    backend = open_backend(index=index)
    ids = backend.store("a", large(400))
    backend.evict("a", ids[100:120])
    before = backend.retrieve("a", QUERIES, 8)
    backend.copy("a", "b")
    backend.evict("a", ids[:100])
    backend.store("a", large(100, seed=1))
    assert not bool((backend.retrieve("a", QUERIES, 8).ids < 100).any())
    assert torch.equal(before.ids, backend.retrieve("b", QUERIES, 8).ids)


@pytest.mark.parametrize("index", APPROXIMATE)
def test_the_same_calls_give_the_same_answers(index: str) -> None:
    answers = []
    for _ in range(2):
        backend = open_backend(index=index, seed=5)
        backend.store("a", large(300))
        answers.append(backend.retrieve("a", QUERIES, 8).ids)
    assert torch.equal(*answers)


@pytest.mark.parametrize("index", INDEXES)
def test_equal_vectors_are_all_found(index: str) -> None:
    backend = open_backend(index=index)
    chunks = large(200)
    backend.store("a", attrs.evolve(chunks, embeddings=torch.ones_like(chunks.embeddings)))
    result = backend.retrieve("a", torch.ones(2, 64), 40)
    assert all(len(set(ids)) == 40 for ids in result.ids.tolist())
    assert bool((result.scores == 64).all())


@pytest.mark.parametrize("index", INDEXES)
def test_the_thread_count_of_others_is_left_alone(index: str) -> None:
    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(7)
        backend = open_backend(index=index, threads=1)
        ids = backend.store("a", large(300))
        backend.retrieve("a", QUERIES, 8)
        backend.evict("a", ids[:10])
        assert faiss.omp_get_max_threads() == 7
    finally:
        faiss.omp_set_num_threads(before)


def test_searching_on_the_cpu_leaves_the_methods_of_faiss_alone() -> None:
    search = faiss.IndexFlat.search
    backend = open_backend()
    backend.store("a", large(300))
    backend.retrieve("a", QUERIES, 8)
    assert faiss.IndexFlat.search is search


def test_payloads_may_be_compressed() -> None:
    backend = open_backend(compression="int8")
    chunks = make_chunks(4)
    fetched = backend.fetch("a", backend.store("a", chunks))
    assert not torch.equal(fetched.keys, chunks.keys)


@pytest.mark.parametrize(
    "options",
    [
        {"index": "tree"},
        {"device": 0},
        {"nlist": 0},
        {"nprobe": 0},
        {"recall": 1.0},
        {"train_size": 0},
        {"pq_m": 0},
        {"M": 1},
        {"M": 129},
        {"ef_construction": 0},
        {"ef": 0},
        {"seed": -1},
        {"threads": 0},
        {"temp_memory": -1},
        {"exact_below": -1},
        {"compression": "zip"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match=next(iter(options))):
        FaissOptions(**options)


def test_says_which_faiss_it_uses(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="memcore.faiss"):
        backend = open_backend()
    (wheel,) = installation().wheels
    assert wheel.endswith(faiss.__version__)
    assert wheel in backend.describe()
    assert backend.describe() in caplog.text
    assert installation().has_gpu == wheel.startswith("faiss-gpu")


@pytest.mark.parametrize(
    ("device", "found", "message"),
    [
        ("cuda", CPU_ONLY, "faiss-cpu 1, built for the CPU only"),
        ("cuda:1", GPU_BUILD, "faiss sees 0 GPUs"),
    ],
)
def test_a_device_that_cannot_be_used_is_refused(device: str, found: Installation, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        resolve_device(device, found)


@pytest.mark.parametrize("index", [*INDEXES, "cagra"])
@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:", "CPU"])
def test_a_device_that_is_none_is_a_mistake_in_the_configuration(index: Any, device: str) -> None:
    with pytest.raises(ConfigError, match=f"'cuda:N', got '{device}'"):
        FaissBackend(FaissOptions(index=index, device=device))


@pytest.mark.parametrize(
    ("options", "found", "error", "message"),
    [
        (FaissOptions(index="hnsw", device="cuda"), GPU_BUILD, ConfigError, "on the CPU only, got device 'cuda'"),
        (FaissOptions(index="cagra", device="cpu"), CPU_ONLY, ConfigError, "on a GPU only, got device 'cpu'"),
        (FaissOptions(index="cagra"), CPU_ONLY, BackendError, "faiss-gpu-cuvs"),
        (FaissOptions(index="cagra"), CUVS_BUILD, BackendError, "on a GPU only"),
    ],
)
def test_an_index_that_the_device_has_not_is_refused(
    options: FaissOptions, found: Installation, error: type[MemcoreError], message: str
) -> None:
    with pytest.raises(error, match=message):
        choose_gpu(options, found)


def test_auto_is_the_cpu_without_a_gpu() -> None:
    assert all(resolve_device("auto", found) is None for found in (CPU_ONLY, GPU_BUILD))


def test_the_plugin_offers_the_backend() -> None:
    (component,) = memcore_backends()
    assert component.name == "faiss"
    assert component.load() is FaissBackend


def join(first: ChunkBatch, second: ChunkBatch) -> ChunkBatch:
    values = attrs.asdict(second, recurse=False)
    return type(first)(
        **{name: torch.cat((value, values[name])) for name, value in attrs.asdict(first, recurse=False).items()}
    )


def test_the_backend_says_which_faiss_it_is() -> None:
    assert faiss.__version__ in FaissBackend.about()
    assert "built for" in FaissBackend.about()
