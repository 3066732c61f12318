"""Random chunks to test with, and what it means that two are the same."""

from __future__ import annotations

from typing import Any

import attrs
import torch

from memcore.chunk import UNKNOWN_TOKEN, ChunkBatch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What keys and values may be."""

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def make_chunks(
    count: int,
    *,
    seed: int = 0,
    vectors: int = 2,
    size: int = 5,
    heads: int = 2,
    width: int = 3,
    key_size: int = 4,
    value_size: int = 3,
    dtype: torch.dtype = torch.float32,
    start: int = 0,
) -> ChunkBatch:
    """Return random chunks of random lengths.

    Args:
        count: ``N``.
        seed: of the numbers.
        vectors: ``V``, vectors of a chunk.
        size: ``E``, numbers of a vector.
        heads: ``H``, key/value heads.
        width: ``C``; chunks have 1 to ``C`` tokens.
        key_size: ``D``.
        value_size: ``Dv``.
        dtype: of keys and values; embeddings are float32.
        start: position of the first chunk; each begins ``C`` behind the one before.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (count,), generator=generator)
    token_ids = torch.randint(0, 1000, (count, width), generator=generator)
    token_ids[torch.arange(width) >= lengths[:, None]] = UNKNOWN_TOKEN
    return ChunkBatch(
        embeddings=torch.randn(count, vectors, size, generator=generator),
        keys=torch.randn(count, heads, width, key_size, generator=generator).to(dtype),
        values=torch.randn(count, heads, width, value_size, generator=generator).to(dtype),
        starts=start + width * torch.arange(count),
        lengths=lengths,
        token_ids=token_ids,
    )


def random_queries(count: int, *, size: int = 5, seed: int = 0) -> torch.Tensor:
    """Return random queries, ``[count, size]``, that fit :func:`make_chunks`."""
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def select(chunks: ChunkBatch, places: Any) -> ChunkBatch:
    """Return the chunks at these places."""
    return ChunkBatch(**{name: value[places] for name, value in attrs.asdict(chunks, recurse=False).items()})


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's bits, to compare them."""
    return tensor.contiguous().view(_INTEGERS[tensor.element_size()])


def assert_same_chunks(got: ChunkBatch, want: ChunkBatch) -> None:
    """Check that two batches hold the same chunks bit for bit, whatever lies in the padding."""
    assert len(got) == len(want)
    assert got.keys.dtype == want.keys.dtype
    assert torch.equal(got.starts, want.starts)
    assert torch.equal(got.lengths, want.lengths)
    assert torch.equal(bits(got.embeddings), bits(want.embeddings))
    for place, length in enumerate(want.lengths.tolist()):
        assert torch.equal(bits(got.keys[place, :, :length]), bits(want.keys[place, :, :length]))
        assert torch.equal(bits(got.values[place, :, :length]), bits(want.values[place, :, :length]))
        assert torch.equal(got.token_ids[place, :length], want.token_ids[place, :length])
        assert bool((got.token_ids[place, length:] == UNKNOWN_TOKEN).all())
