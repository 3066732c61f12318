"""The contract of a chunk embedder: what vectors a chunk is found by, and what vectors look for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import attrs
from torch import Tensor

from memcore.options import NoOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@attrs.frozen(eq=False, kw_only=True)
class ChunkKeys:
    """Chunks to embed.

    Attributes:
        keys: ``[N, H, C, D]`` float32, keys of ``H`` key/value heads before rotation.
        token_ids: ``[N, C]`` int64, ``UNKNOWN_TOKEN`` where the model was fed embeddings.
    """

    keys: Tensor
    token_ids: Tensor


@attrs.frozen(eq=False, kw_only=True)
class RecentQueries:
    """What the latest tokens of one sequence are looking for.

    Attributes:
        queries: ``[Hq, T, D]`` float32, times the attention scaling, so that inner products are attention logits. Each
            is turned as if the chunk's keys, unrotated, lay ``query_distance`` tokens in the past.
        kv_heads: ``H``; query head ``i`` reads key/value head ``i // (Hq // H)``.
        token_ids: ``[T]`` int64.
    """

    queries: Tensor
    kv_heads: int
    token_ids: Tensor


class ChunkEmbedder(ABC):
    """Turns chunks and queries into vectors whose inner product ranks the chunks.

    Attributes:
        Options: frozen attrs class that the user's ``embedder_options`` are structured into, strictly.
    """

    Options: ClassVar[type] = NoOptions

    def __init__(self, options: object) -> None:  # noqa: B027
        """Take an instance of ``Options``."""

    def bind_tokenizer(self, tokenizer: PreTrainedTokenizerBase | str | None) -> None:  # noqa: B027
        """Take the model's tokenizer, its name, or None if nobody knows it; called once, before any embedding.

        Raises:
            ConfigError: this embedder reads text and has no tokenizer.
        """

    @abstractmethod
    def embed_chunks(self, chunks: ChunkKeys) -> Tensor:
        """Return ``[N, V, E]`` float32: ``V`` vectors a chunk, the same ``V`` and ``E`` at every call."""

    @abstractmethod
    def embed_queries(self, recent: RecentQueries) -> Tensor:
        """Return ``[Q, E]`` float32; every one of the ``Q`` has an equal vote on which chunks come back."""
