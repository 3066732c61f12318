"""What one layer asks of the bank: its latest queries, and the chunks that they choose."""

from __future__ import annotations

import torch
from torch import Tensor

from memcore.chunk import ChunkBatch
from memcore.embedder import RecentQueries
from memcore.layer_setup import LayerSetup
from memcore.recall import Retrieved
from memcore.rotary import rotate, unrotate
from memcore.transfer import to_device
from memcore.window import LocalWindow, take_columns


class Retriever:
    """Keeps the latest queries of a layer and finds chunks by them. Tensors are replaced, never written to.

    Attributes:
        recent: ``[B, Hq, R, D]``, the queries as the model rotated them; None before the first.
    """

    def __init__(self, setup: LayerSetup) -> None:
        """Start without queries."""
        self.setup = setup
        self.recent: Tensor | None = None

    def note(self, query: Tensor, window: LocalWindow) -> None:
        """Remember the latest of these queries, ``[B, Hq, T, D]`` rotated."""
        query, count = query.detach(), len(window.recent_after)
        if window.recent_order is None:
            if query.shape[2] < count:
                assert self.recent is not None
                query = torch.cat((self.recent, query), dim=2)
            self.recent = query[:, :, query.shape[2] - count :].clone()
        else:
            both = query if self.recent is None else torch.cat((self.recent, query), dim=2)
            self.recent = take_columns(both, window.recent_order)

    def retrieve(
        self, window: LocalWindow, row: int, row_name: str, *, kv_heads: int, scaling: float
    ) -> Retrieved | None:
        """Choose chunks for one row by what it is looking for now, or return None if it has none.

        Args:
            window: the piece under way. A single token has been noted already and asks for itself too; a longer piece
                is served by what came before it.
            row: the row.
            row_name: name of its memory.
            kv_heads: key/value heads of the layer.
            scaling: what the model multiplies logits with.
        """
        config, bank, geometry = self.setup.config, self.setup.bank, self.setup.geometry
        namespace = self.setup.namespace(row_name)
        if self.recent is None or bank.count(namespace) == 0:
            return None
        recent = window.recent_after if window.new == 1 else window.recent
        live = recent.live[row]
        queries = self.recent[row][:, live.to(self.recent.device)].float() * scaling  # [Hq, R, D]
        if geometry is not None:
            queries = unrotate(queries, recent.positions[row, live] - config.distance, geometry)
            queries[..., geometry.turning] *= geometry.attention_scaling**2  # the model's logits, of unscaled keys
        asked = RecentQueries(queries=queries, kv_heads=kv_heads, token_ids=recent.token_ids[row, live])

        def rescore(chunks: ChunkBatch) -> Tensor:
            keys, turned = to_device(chunks.keys, queries.device).float(), queries.expand(len(chunks), -1, -1, -1)
            if geometry is not None:
                # As if every chunk began at position 0, its tokens at their true spacing. In place of its keys the
                # queries are turned, the other way: as a rule they are fewer.
                turned = rotate(turned, chunks.starts[:, None, None], geometry)
                turned[..., geometry.turning] /= geometry.attention_scaling
            return exact_votes(turned, keys)

        return bank.retrieve(
            namespace,
            self.setup.embedder.embed_queries(asked),
            config.chunks,
            candidates=config.candidates,
            rescore=None if config.candidates is None else rescore,
        )

    def select_rows(self, index: Tensor) -> None:
        """Keep the rows ``index``, in that order, repeats allowed."""
        if self.recent is not None:
            self.recent = self.recent[index.to(self.recent.device)]

    def crop(self, window: LocalWindow) -> None:
        """Forget the queries of tokens that the window has taken back."""
        if self.recent is not None:
            self.recent = self.recent[:, :, : len(window.recent)]


def exact_votes(queries: Tensor, keys: Tensor) -> Tensor:
    """Share of attention each chunk would get among the chunks given, summed over queries and heads.

    Args:
        queries: ``[N, Hq, T, D]`` float32, those of each chunk turned as its keys are; ``[1, Hq, T, D]`` if no key is.
        keys: ``[N, H, C, D]`` float32.

    Returns:
        ``[N]`` float32, summing to ``Hq * T``.
    """
    grouped = queries.unflatten(1, (keys.shape[1], -1)).flatten(2, 3)  # [N, H, group * T, D]
    logits = grouped @ keys.transpose(2, 3)
    mass: Tensor = logits.logsumexp(dim=-1).flatten(1).softmax(dim=0)
    return mass.sum(dim=1)
