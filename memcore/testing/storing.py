"""Storing, fetching and evicting: every bit comes back, and ids stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import pytest
import torch

from memcore.backend import PersistentBackend
from memcore.chunk import UNKNOWN_TOKEN, ChunkBatch
from memcore.testing.case import BackendCase
from memcore.testing.chunks import DTYPES, bits, make_chunks, select

if TYPE_CHECKING:
    from memcore.backend import MemoryBackend


class StoringTests(BackendCase):
    """What is stored comes back, under ids that are never used again."""

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_fetch_gives_back_every_bit(self, backend: MemoryBackend, dtype: torch.dtype) -> None:
        chunks = make_chunks(5, dtype=dtype)
        ids = backend.store("a", chunks)
        self.assert_same(backend.fetch("a", ids), chunks)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_chunks_lie_where_they_are_kept_as_they_were(self, backend: MemoryBackend, dtype: torch.dtype) -> None:
        chunks = make_chunks(5, dtype=dtype)
        ids = backend.store("a", chunks)
        if isinstance(backend, PersistentBackend):
            backend.flush()
        for row, (id, length) in enumerate(zip(ids.tolist(), chunks.lengths.tolist(), strict=True)):
            keys, values = (tensor.cpu() for tensor in self.raw_payload(backend, "a", id))
            want = select(chunks, slice(row, row + 1))
            assert keys.shape == (2, length, 4)
            assert values.shape == (2, length, 3)
            kept = attrs.evolve(want, keys=keys[None], values=values[None], token_ids=want.token_ids[:, :length])
            self.assert_same(kept, want)

    def test_fetch_keeps_order_and_repeats(self, backend: MemoryBackend) -> None:
        chunks = make_chunks(4)
        ids = backend.store("a", chunks)
        places = torch.tensor([3, 0, 3, 1])
        self.assert_same(backend.fetch("a", ids[places]), select(chunks, places))

    def test_fetch_of_no_ids_has_the_shapes_of_the_namespace(self, backend: MemoryBackend) -> None:
        backend.store("a", make_chunks(2))
        none = backend.fetch("a", torch.empty(0, dtype=torch.int64))
        assert len(none) == 0
        assert none.embeddings.shape[1:] == (2, 5)
        assert (none.keys.shape[1], none.keys.shape[3], none.values.shape[3]) == (2, 4, 3)

    def test_chunks_of_other_lengths_join(self, backend: MemoryBackend) -> None:
        batches = [make_chunks(2, width=width, seed=width) for width in (3, 5, 2)]
        ids = [backend.store("a", batch) for batch in batches]
        for own, batch in zip(ids, batches, strict=True):
            self.assert_same(backend.fetch("a", own), batch)

    def test_ids_grow_and_are_never_used_again(self, backend: MemoryBackend) -> None:
        first = backend.store("a", make_chunks(3))
        backend.evict("a", first[1:])
        second = backend.store("a", make_chunks(2, seed=1))
        everything = torch.cat((first, second))
        assert everything.dtype == torch.int64
        assert bool((everything.diff() > 0).all())
        assert int(first[0]) >= 0
        assert backend.ids("a").tolist() == [int(first[0]), *second.tolist()]

    def test_stored_chunks_do_not_alias_what_was_given_or_fetched(self, backend: MemoryBackend) -> None:
        chunks = make_chunks(2)
        want = select(chunks, slice(None))
        want = attrs.evolve(want, keys=want.keys.clone(), embeddings=want.embeddings.clone())
        ids = backend.store("a", chunks)
        chunks.keys.zero_()
        chunks.embeddings.zero_()
        backend.fetch("a", ids).keys.zero_()
        backend.ids("a").fill_(7)
        ids_again = backend.ids("a")
        assert torch.equal(ids_again, ids)
        self.assert_same(backend.fetch("a", ids), want)

    @pytest.mark.parametrize("first", [True, False], ids=["inference first", "inference last"])
    def test_inference_mode_and_training_mix(self, backend: MemoryBackend, first: bool) -> None:
        with torch.inference_mode(first):
            ids = backend.store("a", make_chunks(5))
            backend.evict("a", ids[1:3])  # makes room that is written to later
        with torch.inference_mode(not first):
            later = make_chunks(1, seed=3)
            backend.evict("a", backend.store("a", later))
            backend.retrieve("a", torch.zeros(1, 5), 1)
        weight = torch.ones(1, requires_grad=True)
        loss = (backend.fetch("a", backend.ids("a")).keys * weight).sum()
        (gradient,) = torch.autograd.grad(loss, weight)
        assert float(gradient) != 0

    def test_gradients_are_not_kept(self, backend: MemoryBackend) -> None:
        chunks = make_chunks(2)
        traced = attrs.evolve(chunks, keys=chunks.keys.requires_grad_(), embeddings=chunks.embeddings.requires_grad_())
        fetched = backend.fetch("a", backend.store("a", traced))
        found = backend.retrieve("a", torch.zeros(1, 5, requires_grad=True), 1)
        assert not any(tensor.requires_grad for tensor in (fetched.keys, fetched.embeddings, found.scores))

    def test_bytes_are_counted_at_least_for_what_is_stored(self, backend: MemoryBackend) -> None:
        chunks = make_chunks(8, width=16, key_size=16, value_size=16, heads=4)
        chunks = attrs.evolve(chunks, lengths=torch.full((8,), 16))  # padding may or may not be kept
        payload = chunks.keys.nbytes + chunks.values.nbytes + chunks.embeddings.nbytes
        assert backend.nbytes() == 0
        assert backend.nbytes("a") == 0
        backend.store("a", chunks)
        backend.store("b", chunks)
        assert backend.nbytes("a") >= payload
        assert backend.nbytes() == backend.nbytes("a") + backend.nbytes("b")
        backend.drop("a")
        assert backend.nbytes() == backend.nbytes("b")

    def test_double_precision_is_kept(self, backend: MemoryBackend) -> None:
        chunks = make_chunks(3, dtype=torch.float64)
        self.assert_same(backend.fetch("a", backend.store("a", chunks)), chunks)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_any_pattern_of_bits_is_kept(self, backend: MemoryBackend, dtype: torch.dtype) -> None:
        if not self.keeps_every_bit:
            pytest.skip("compresses payloads")
        chunks = make_chunks(4, dtype=dtype, width=16)
        generator = torch.Generator().manual_seed(0)
        for payload in (chunks.keys, chunks.values):  # infinities, NaNs of all kinds, subnormal numbers, -0
            bits(payload).random_(torch.iinfo(bits(payload).dtype).min, None, generator=generator)
        self.assert_same(backend.fetch("a", backend.store("a", chunks)), chunks)

    def test_tensors_may_lie_anyhow_in_memory(self, backend: MemoryBackend) -> None:
        chunks = make_chunks(4)
        scattered = ChunkBatch(
            embeddings=chunks.embeddings.transpose(0, 2).contiguous().transpose(0, 2),
            keys=chunks.keys.repeat(1, 1, 1, 2)[..., : chunks.keys.shape[3]],
            values=chunks.values.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
            starts=chunks.starts.repeat_interleave(2)[::2],
            lengths=chunks.lengths.repeat_interleave(2)[::2],
            token_ids=chunks.token_ids.T.contiguous().T,
        )
        self.assert_same(backend.fetch("a", backend.store("a", scattered)), chunks)
        shared = attrs.evolve(chunks, embeddings=chunks.embeddings[:1].expand(4, -1, -1))
        self.assert_same(backend.fetch("a", backend.store("a", shared)), shared)

    def test_positions_and_tokens_may_be_large(self, backend: MemoryBackend) -> None:
        starts = torch.tensor([0, 2**31 - 1, 2**31, 2**32 + 1, 2**62])
        chunks = make_chunks(5, width=2)
        token_ids = torch.where(chunks.token_ids == UNKNOWN_TOKEN, UNKNOWN_TOKEN, chunks.token_ids + 2**40)
        token_ids[:2, 0] = UNKNOWN_TOKEN
        chunks = attrs.evolve(chunks, starts=starts, token_ids=token_ids)
        self.assert_same(backend.fetch("a", backend.store("a", chunks)), chunks)

    def test_storing_nothing_gives_no_ids(self, backend: MemoryBackend) -> None:
        none = backend.store("a", make_chunks(0))
        assert none.shape == (0,)
        assert none.dtype == torch.int64
        ids = backend.store("a", make_chunks(2))
        assert backend.store("a", make_chunks(0)).shape == (0,)
        assert torch.equal(backend.ids("a"), ids)

    def test_ids_stay_with_their_chunks(self, backend: MemoryBackend) -> None:
        chunks = make_chunks(40)
        ids = backend.store("a", chunks)
        keep = torch.ones(40, dtype=torch.bool)
        for step in range(0, 40, 5):
            backend.evict("a", ids[step : step + 2])
            keep[step : step + 2] = False
            backend.store("a", make_chunks(3, seed=step, width=4))
            self.assert_same(backend.fetch("a", ids[keep]), select(chunks, keep))
        self.assert_same(backend.fetch("a", ids[keep].flip(0)), select(chunks, keep.nonzero().flatten().flip(0)))

    def test_eviction_of_everything_keeps_the_shapes(self, backend: MemoryBackend) -> None:
        first = backend.store("a", make_chunks(3))
        backend.evict("a", first.flip(0))
        backend.evict("a", first[:0])
        assert backend.count("a") == 0
        chunks = make_chunks(2, seed=1)
        ids = backend.store("a", chunks)
        assert int(ids[0]) > int(first[-1])
        self.assert_same(backend.fetch("a", ids), chunks)
