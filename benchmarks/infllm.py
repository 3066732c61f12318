"""InfLLM (arXiv 2402.04617) as a configuration of memcore, as closely as its options and one embedder allow.

What is the same: blocks of 128 tokens; four vectors a block; the first tokens and a local window always at hand; one
choice of blocks for 512 tokens of reading and for every generated token; a block's score is the inner product of the
mean query with its vectors, summed over heads, the best vector counting; blocks that come back all stand at one
distance, right before the window; nothing is trained and nothing is forgotten.

What differs: InfLLM's four vectors are the keys that got most attention from the tokens after them, which an embedder
of memcore does not see; here they are means of runs of 32 keys. InfLLM chooses by the queries of the very tokens that
it reads, here it is by the ones before them, as every choice of memcore is causal. InfLLM scores with queries and keys
as if both stood at position 0, which is ``query_distance=0`` here. Its window of 4,096 tokens is as long as that of the
others, and its 128 first tokens are fewer by as much. 16 of its blocks come back, 2,048 tokens.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor

import memcore
from memcore.embedder import RecentQueries
from memcore.embedders import SubBlockMeans, query_in_own_slot
from memcore.plugins import registry

NAME: Final = "infllm"
BLOCK: Final = 128


class MeanQuery(SubBlockMeans):
    """Means of runs of keys, found by one vector: the mean query of all tokens, the heads side by side."""

    def embed_queries(self, recent: RecentQueries) -> Tensor:
        """Return ``[1, H * D]``."""
        heads, tokens, _ = recent.queries.shape
        # Heads that share a key/value head lie in the same slot, so that their sum is one over heads.
        return query_in_own_slot(recent).view(heads, tokens, -1).mean(dim=1).sum(dim=0, keepdim=True)


class Plugin:
    """Offers the embedder."""

    @memcore.hookimpl
    def memcore_embedders(self) -> list[memcore.Component]:
        """Return the embedder."""
        return [memcore.Component(name=NAME, summary="InfLLM's choice of blocks", load=lambda: MeanQuery)]


def configuration(window: int) -> memcore.MemoryConfig:
    """Return the configuration, and make its embedder known.

    Args:
        window: of the local window, in tokens.
    """
    if NAME not in registry().components("embedders"):
        registry().register(Plugin(), NAME)
    block = min(BLOCK, window // 2)
    return memcore.MemoryConfig(
        window=window,
        sinks=max(1, window * 128 // 4096),
        chunk_size=block,
        top_k=16,
        segment=min(512, window - block),
        query_tokens=min(512, window - block),
        retrieve_every=1,
        query_distance=0,
        positions="zero",
        embedder=NAME,
        embedder_options={"block": max(1, block // 4)},
        rerank=0,
    )
