"""What the conformance kit may expect of a backend that compresses payloads to int8."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch

from memcore.testing import BackendTests, assert_same_chunks, make_chunks

if TYPE_CHECKING:
    from memcore.backend import MemoryBackend
    from memcore.chunk import ChunkBatch


def assert_same_but_for_int8(got: ChunkBatch, want: ChunkBatch) -> None:
    """Check that only keys and values differ, by half a step and the rounding to their dtype."""
    padding = (torch.arange(want.keys.shape[2]) >= want.lengths[:, None])[:, None, :, None]
    width = min(got.keys.shape[2], want.keys.shape[2])
    for name, dim in (("keys", 2), ("values", 3)):
        found, true = getattr(got, name), getattr(want, name)
        assert found.dtype == true.dtype
        true = true.double()
        high = true.masked_fill(padding, -torch.inf).amax(dim, keepdim=True)
        low = true.masked_fill(padding, torch.inf).amin(dim, keepdim=True)
        bound = (high - low) / 508 + torch.finfo(found.dtype).eps * torch.maximum(high.abs(), low.abs())
        error = (found[:, :, :width].double() - true[:, :, :width]).abs()
        assert bool((error <= bound.expand_as(true)[:, :, :width]).masked_fill(padding[:, :, :width], True).all())
    assert_same_chunks(got, attrs.evolve(want, keys=_like(got.keys, want.keys), values=_like(got.values, want.values)))


def _like(got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """Return what was got, as wide as what was wanted."""
    width = want.shape[2] - got.shape[2]
    return torch.nn.functional.pad(got, (0, 0, 0, max(0, width)))[:, :, : want.shape[2]]


class Int8Tests(BackendTests):
    """The kit for a backend opened with ``compression="int8"``."""

    def assert_same(self, got: ChunkBatch, want: ChunkBatch) -> None:
        assert_same_but_for_int8(got, want)

    def test_bytes_are_counted_at_least_for_what_is_stored(self, backend: MemoryBackend) -> None:
        chunks = make_chunks(8, width=64, key_size=64, value_size=64, heads=4)
        full = chunks.keys.nbytes + chunks.values.nbytes
        assert backend.nbytes() == 0
        backend.store("a", chunks)
        assert full / 4 < backend.nbytes("a") - chunks.embeddings.nbytes < full / 3
        backend.drop("a")
        assert backend.nbytes() == 0
