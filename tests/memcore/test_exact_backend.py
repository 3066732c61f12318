from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import pytest
import torch
from int8_tolerance import Int8Tests

from memcore import products
from memcore.backend import MemoryBackend
from memcore.chunk import ChunkBatch
from memcore.errors import BackendError, ConfigError, UnknownChunkError
from memcore.exact_backend import ExactBackend, ExactOptions
from memcore.options import NoOptions
from memcore.testing import BackendTests, assert_same_chunks, make_chunks, select

if TYPE_CHECKING:
    from pathlib import Path


class TestContract(BackendTests):
    def open(self, path: Path) -> ExactBackend:
        return ExactBackend(ExactOptions())


class TestContractOfInt8(Int8Tests):
    def open(self, path: Path) -> ExactBackend:
        return ExactBackend(ExactOptions(compression="int8"))


def test_blocks_do_not_change_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = make_chunks(50)
    queries = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    backend = ExactBackend(ExactOptions())
    backend.store("a", chunks)
    whole = backend.retrieve("a", queries, 5)
    monkeypatch.setattr(products, "_BLOCK", 7 * 2 * 3)
    blocks = backend.retrieve("a", queries, 5)
    assert torch.equal(whole.ids, blocks.ids)
    torch.testing.assert_close(whole.scores, blocks.scores)


def test_chunks_survive_growth_and_compaction() -> None:
    backend = ExactBackend(ExactOptions())
    batches = [make_chunks(3, seed=seed) for seed in range(12)]
    ids = [backend.store("a", batch) for batch in batches]
    for own in ids[::2]:
        backend.evict("a", own)
    for own, batch in zip(ids[1::2], batches[1::2], strict=True):
        assert_same_chunks(backend.fetch("a", own), batch)


def test_equal_chunks_are_all_found() -> None:
    backend = ExactBackend(ExactOptions())
    chunks = make_chunks(4)
    same = attrs.evolve(chunks, embeddings=torch.ones_like(chunks.embeddings))
    ids = backend.store("a", same)
    assert sorted(backend.retrieve("a", torch.ones(1, 5), 4).ids[0].tolist()) == ids.tolist()


def test_a_copy_costs_only_what_is_stored() -> None:
    backend = ExactBackend(ExactOptions())
    chunks = make_chunks(40)
    ids = backend.store("a", chunks)
    backend.evict("a", ids[5:])
    backend.copy("a", "b")
    assert backend.nbytes("b") == backend.nbytes("a")
    assert_same_chunks(backend.fetch("b", ids[:5]), select(chunks, slice(5)))


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(BackendError, match="abacus"):
        ExactBackend(ExactOptions(device="abacus"))


def test_options_of_another_backend_are_refused() -> None:
    with pytest.raises(ConfigError, match="ExactOptions"):
        ExactBackend(NoOptions())


@pytest.mark.parametrize("options", [{"compression": "int4"}, {"pin_memory": 1}])
def test_options_that_are_none_are_refused(options: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=next(iter(options))):
        ExactOptions(**options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_chunks_live_on_the_device_and_results_on_the_cpu() -> None:
    backend = ExactBackend(ExactOptions(device="cuda"))
    chunks = make_chunks(3)
    ids = backend.store("a", chunks)
    assert backend.fetch("a", ids).keys.is_cuda
    result = backend.retrieve("a", torch.zeros(1, 5), 2)
    assert not any(tensor.is_cuda for tensor in (ids, result.ids, result.scores))


class Unreadable(ExactBackend):
    """Copies as backends do that have no way of their own, and cannot read what is in ``"damaged"``."""

    copy = MemoryBackend.copy

    def fetch(self, namespace: str, ids: torch.Tensor) -> ChunkBatch:
        if namespace == "damaged":
            raise UnknownChunkError("gone")
        return super().fetch(namespace, ids)


def test_what_cannot_be_read_replaces_nothing() -> None:
    backend, chunks = Unreadable(ExactOptions()), make_chunks(3)
    backend.store("damaged", make_chunks(2))
    ids = backend.store("target", chunks)
    with pytest.raises(UnknownChunkError):
        backend.copy("damaged", "target")
    assert_same_chunks(backend.fetch("target", ids), chunks)
