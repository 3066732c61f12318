"""The records that travel between cache, bank and backend: chunks of past keys and values, and what a search found."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from memcore.errors import ChunkShapeError

UNKNOWN_TOKEN = -1
"""Token id of a token that reached the model as an embedding, and the padding value of ``ChunkBatch.token_ids``."""

NO_CHUNK = -1
"""Fills ``SearchResult.ids`` where a namespace holds fewer chunks than were asked for."""


@attrs.frozen(eq=False, kw_only=True)
class ChunkBatch:
    """``N`` chunks of one namespace, oldest first.

    Chunks shorter than ``C`` tokens are padded at the end; ``lengths`` says where each ends. What lies in the padding
    is not part of the chunk, and a backend need not keep it.

    Attributes:
        embeddings: ``[N, V, E]`` float32, the ``V`` vectors by which each chunk is found, at least one number each.
        keys: ``[N, H, C, D]``, any floating dtype: the keys of ``H`` key/value heads, rotated as the model left them.
        values: ``[N, H, C, Dv]``, same dtype as ``keys``.
        starts: ``[N]`` int64, position id of each chunk's first token.
        lengths: ``[N]`` int64, tokens in each chunk, from 1 to ``C``.
        token_ids: ``[N, C]`` int64, ``UNKNOWN_TOKEN`` where the model was fed embeddings, and in the padding.
    """

    embeddings: Tensor
    keys: Tensor
    values: Tensor
    starts: Tensor
    lengths: Tensor
    token_ids: Tensor

    def __len__(self) -> int:
        return int(self.keys.shape[0])

    def __attrs_post_init__(self) -> None:
        keys, values, embeddings = self.keys.shape, self.values.shape, self.embeddings.shape
        n = keys[0] if keys else 0
        problems = []
        if len(embeddings) != 3 or embeddings[0] != n or 0 in embeddings[1:]:
            problems.append(f"embeddings must be [N, V, E] with N = {n} and no V or E of 0, got {list(embeddings)}")
        if self.embeddings.dtype != torch.float32:
            problems.append(f"embeddings must be float32, got {self.embeddings.dtype}")
        if len(keys) != 4 or len(values) != 4 or values[:3] != keys[:3]:
            problems.append(
                f"keys and values must be [N, H, C, D] and [N, H, C, Dv], got {list(keys)} and {list(values)}"
            )
        if self.keys.dtype != self.values.dtype or not self.keys.dtype.is_floating_point:
            problems.append(
                f"keys and values must be of one floating dtype, got {self.keys.dtype}, {self.values.dtype}"
            )
        for name, tensor in (("starts", self.starts), ("lengths", self.lengths)):
            if tensor.shape != (n,) or tensor.dtype != torch.int64:
                problems.append(f"{name} must be int64 [{n}], got {tensor.dtype} {list(tensor.shape)}")
        if not problems:
            chunk = keys[2]
            if self.token_ids.shape != (n, chunk) or self.token_ids.dtype != torch.int64:
                problems.append(
                    f"token_ids must be int64 [{n}, {chunk}], got {self.token_ids.dtype} {list(self.token_ids.shape)}"
                )
            if n and not _within(self.lengths, 1, chunk):
                problems.append(f"lengths must lie in 1..{chunk}, got {self.lengths.tolist()}")
        if problems:
            raise ChunkShapeError("; ".join(problems))


def _within(numbers: Tensor, low: int, high: int) -> bool:
    listed: list[int] = numbers.tolist()  # quicker than aminmax() for as many chunks as come at a time
    return min(listed) >= low and max(listed) <= high


@attrs.frozen(eq=False, kw_only=True)
class SearchResult:
    """The best chunks for each of ``Q`` queries, best first.

    Attributes:
        ids: ``[Q, k]`` int64 chunk ids, ``NO_CHUNK`` where the namespace holds fewer than ``k`` chunks.
        scores: ``[Q, k]`` float32, the largest inner product of the query with any of the chunk's vectors,
            ``-inf`` where ``ids`` is ``NO_CHUNK``.
    """

    ids: Tensor
    scores: Tensor

    def cpu(self) -> SearchResult:
        """Return the same on the CPU: this one, if it is there."""
        if self.ids.is_cpu and self.scores.is_cpu:
            return self
        return SearchResult(ids=self.ids.cpu(), scores=self.scores.cpu())
