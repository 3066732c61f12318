from __future__ import annotations

import attrs
import pytest
import torch

from memcore import ChunkEmbedder, ConfigError
from memcore.embedder import ChunkKeys, RecentQueries
from memcore.embedders import EveryKey, MeanKey, MinMaxBounds, RandomVectors, SubBlockMeans
from memcore.options import structure_options
from memcore.retriever import exact_votes

torch.manual_seed(0)
KEYS = torch.randn(6, 2, 20, 8)  # 6 chunks, 2 key/value heads, 20 tokens
QUERIES = torch.randn(4, 3, 8)  # 4 query heads, 3 tokens
RECENT = RecentQueries(queries=QUERIES, kv_heads=2, token_ids=torch.arange(3))


def make(cls: type[ChunkEmbedder], **options: object) -> ChunkEmbedder:
    return cls(structure_options(cls.Options, options))


def scores(embedder: ChunkEmbedder) -> torch.Tensor:
    """Best inner product of each query with each chunk, ``[Hq * T, N]``."""
    chunks = embedder.embed_chunks(ChunkKeys(keys=KEYS, token_ids=torch.zeros(6, 20, dtype=torch.int64)))
    queries = embedder.embed_queries(RECENT)
    return torch.einsum("qe,nve->qnv", queries, chunks).amax(dim=-1)


def logits() -> torch.Tensor:
    """Attention logits of every query head with its own key/value head, ``[Hq * T, N, C]``."""
    return torch.einsum("htd,nhcd->htnc", QUERIES, KEYS.repeat_interleave(2, dim=1)).flatten(0, 1)


def test_every_key_gives_the_largest_logit() -> None:
    torch.testing.assert_close(scores(make(EveryKey)), logits().amax(dim=-1))


def test_mean_key_gives_the_mean_logit() -> None:
    torch.testing.assert_close(scores(make(MeanKey)), logits().mean(dim=-1))


def test_sub_blocks_give_the_best_mean_logit_of_a_run_the_last_one_shorter() -> None:
    runs = [run.mean(dim=-1) for run in logits().split(8, dim=-1)]
    torch.testing.assert_close(scores(make(SubBlockMeans, block=8)), torch.stack(runs, dim=-1).amax(dim=-1))


@pytest.mark.parametrize("block", [0, 8])
def test_bounds_are_never_below_the_largest_logit(block: int) -> None:
    assert bool((scores(make(MinMaxBounds, block=block)) >= logits().amax(dim=-1) - 1e-5).all())


def test_bounds_of_single_keys_are_the_logits() -> None:
    torch.testing.assert_close(scores(make(MinMaxBounds, block=1)), logits().amax(dim=-1))


def test_exact_votes_are_attention_mass_shared_out_among_the_chunks() -> None:
    mass = torch.softmax(logits().flatten(1), dim=-1).view(12, 6, 20).sum(dim=(0, 2))
    torch.testing.assert_close(exact_votes(QUERIES[None], KEYS), mass)


def test_a_wrong_block_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="block"):
        make(SubBlockMeans, block=0)


def test_random_vectors_depend_on_the_tokens_and_nothing_else() -> None:
    embedder = make(RandomVectors)
    token_ids = torch.arange(40).view(4, 10)
    one, other = (embedder.embed_chunks(ChunkKeys(keys=keys, token_ids=token_ids)) for keys in (KEYS[:4], -KEYS[:4]))
    assert torch.equal(one, other)
    assert one.shape == (4, 1, 32)
    assert len(one.unique(dim=0)) == 4
    asked = attrs.evolve(RECENT, queries=-QUERIES)
    assert torch.equal(embedder.embed_queries(RECENT), embedder.embed_queries(asked))
