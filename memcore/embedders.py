"""Training-free embedders over a layer's own keys. ``benchmarks/embedders.py`` compares them."""

from __future__ import annotations

import zlib
from typing import cast

import attrs
import torch
from torch import Tensor

from memcore.embedder import ChunkEmbedder, ChunkKeys, RecentQueries


def heads_side_by_side(vectors: Tensor) -> Tensor:
    """Lay the vectors of all key/value heads in one: ``[N, H, V, D]`` to ``[N, V, H * D]``."""
    return vectors.transpose(1, 2).flatten(2)


def query_in_own_slot(recent: RecentQueries) -> Tensor:
    """Lay every query head in the slot of the key/value head it reads, zero elsewhere: ``[Hq * T, H * D]``."""
    heads, tokens, dim = recent.queries.shape
    group = heads // recent.kv_heads
    slots = recent.queries.new_zeros(recent.kv_heads, group, tokens, recent.kv_heads, dim)
    index = torch.arange(recent.kv_heads, device=slots.device)
    slots[index, :, :, index] = recent.queries.view(recent.kv_heads, group, tokens, dim)
    return slots.view(heads * tokens, recent.kv_heads * dim)


class KeyEmbedder(ChunkEmbedder):
    """Base of embedders whose chunk vectors are (sums of) keys, so that a query is its own vector."""

    def embed_queries(self, recent: RecentQueries) -> Tensor:
        """Return ``[Hq * T, H * D]``: one vector for each query head and token."""
        return query_in_own_slot(recent)


class MeanKey(KeyEmbedder):
    """One vector a chunk: the mean of its keys."""

    def embed_chunks(self, chunks: ChunkKeys) -> Tensor:
        """Return ``[N, 1, H * D]``."""
        return heads_side_by_side(chunks.keys.mean(dim=2, keepdim=True))


class SubBlockMeans(KeyEmbedder):
    """Means of short runs of keys: several vectors a chunk, the best of which counts."""

    @attrs.frozen(kw_only=True)
    class Options:
        """Options of ``subblock``.

        Attributes:
            block: tokens in a run; the chunk's last run may be shorter.
        """

        block: int = attrs.field(default=8, validator=attrs.validators.ge(1))

    def __init__(self, options: object) -> None:
        """Take :class:`SubBlockMeans.Options`."""
        self.block = cast(SubBlockMeans.Options, options).block

    def embed_chunks(self, chunks: ChunkKeys) -> Tensor:
        """Return ``[N, ceil(C / block), H * D]``."""
        runs = chunks.keys.split(self.block, dim=2)
        return heads_side_by_side(torch.stack([run.mean(dim=2) for run in runs], dim=2))


class EveryKey(KeyEmbedder):
    """Every key on its own: the search is over exact attention logits."""

    def embed_chunks(self, chunks: ChunkKeys) -> Tensor:
        """Return ``[N, C, H * D]``."""
        return heads_side_by_side(chunks.keys)


class MinMaxBounds(ChunkEmbedder):
    """Largest and smallest value of each key dimension: the inner product bounds every logit from above.

    ``q . k <= relu(q) . max(k) - relu(-q) . min(k)``, the bound of Quest (arXiv 2406.10774).
    """

    @attrs.frozen(kw_only=True)
    class Options:
        """Options of ``minmax``.

        Attributes:
            block: tokens that share a pair of bounds; 0 for the whole chunk.
        """

        block: int = attrs.field(default=0, validator=attrs.validators.ge(0))

    def __init__(self, options: object) -> None:
        """Take :class:`MinMaxBounds.Options`."""
        self.block = cast(MinMaxBounds.Options, options).block

    def embed_chunks(self, chunks: ChunkKeys) -> Tensor:
        """Return ``[N, V, 2 * H * D]``."""
        runs = chunks.keys.split(self.block or chunks.keys.shape[2], dim=2)
        high = torch.stack([run.amax(dim=2) for run in runs], dim=2)
        low = torch.stack([run.amin(dim=2) for run in runs], dim=2)
        return torch.cat((heads_side_by_side(high), heads_side_by_side(low)), dim=-1)

    def embed_queries(self, recent: RecentQueries) -> Tensor:
        """Return ``[Hq * T, 2 * H * D]``."""
        queries = query_in_own_slot(recent)
        return torch.cat((queries.relu(), -(-queries).relu()), dim=-1)


class RandomVectors(ChunkEmbedder):
    """Chunks by chance: the control for every claim that the chunks which come back are the right ones.

    A vector depends on the token ids alone, so the same text always gives the same choice. Needs ``rerank=0``, or the
    best of many random chunks come back.
    """

    def embed_chunks(self, chunks: ChunkKeys) -> Tensor:
        """Return ``[N, 1, 32]``."""
        return torch.stack([_random_vector(row) for row in chunks.token_ids.cpu()])[:, None]

    def embed_queries(self, recent: RecentQueries) -> Tensor:
        """Return ``[1, 32]``."""
        return _random_vector(recent.token_ids.cpu())[None]


def _random_vector(token_ids: Tensor) -> Tensor:
    seed = zlib.crc32(token_ids.contiguous().numpy().tobytes())
    return torch.randn(32, generator=torch.Generator().manual_seed(seed))
