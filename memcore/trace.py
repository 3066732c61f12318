"""What memory did: for each generated token the chunks that were read, and the share of attention that each got."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import attrs
from torch import Tensor

from memcore.chunk import UNKNOWN_TOKEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from memcore.cache import MemoryCache
    from memcore.memory_layer import MemoryLayer


@attrs.frozen(eq=False, kw_only=True)
class ChunkRead:
    """A chunk that one layer attended to.

    Attributes:
        layer: index of the layer.
        id: of the chunk, in the bank.
        start: position of its first token.
        token_ids: ``[C]`` int64.
        share: of the layer's attention, from 0 to 1, the mean over its heads.
    """

    layer: int
    id: int
    start: int
    token_ids: Tensor
    share: float


@attrs.frozen(kw_only=True)
class LayerShares:
    """How one layer's attention was spread, the mean over its heads.

    Attributes:
        layer: index of the layer.
        memory: share of all retrieved chunks.
        sinks: share of the first tokens, kept for good.
        window: share of the local window. The three add up to 1, or to less where the model has learned sinks.
    """

    layer: int
    memory: float
    sinks: float
    window: float


@attrs.frozen(eq=False, kw_only=True)
class TokenTrace:
    """What was read to write one token.

    Attributes:
        position: of the token that was written.
        token_id: the token; None for the last, which no forward has been given, unless :meth:`Trace.wrote` told it.
        chunks: what was read, the largest share first.
        layers: one for each layer that reads.
    """

    position: int
    token_id: int | None
    chunks: tuple[ChunkRead, ...]
    layers: tuple[LayerShares, ...]

    def shares(self) -> dict[int, float]:
        """Return the share of each passage by its position, the mean over the layers that read, the largest first."""
        shares: dict[int, float] = {}
        for chunk in self.chunks:
            shares[chunk.start] = shares.get(chunk.start, 0.0) + chunk.share / len(self.layers)
        return dict(sorted(shares.items(), key=lambda item: -item[1]))


@attrs.frozen(eq=False, kw_only=True)
class PassageRead:
    """A passage of the text that the generated tokens attended to.

    Layers and tokens that read the same chunk read one passage.

    Attributes:
        start: position of its first token.
        token_ids: ``[C]`` int64.
        share: of the attention, from 0 to 1, the mean over the layers that read and over all generated tokens.
    """

    start: int
    token_ids: Tensor
    share: float


@attrs.define(eq=False, kw_only=True)
class _Step:
    """One piece that passed through the model: what its last token read."""

    cache: weakref.ref[MemoryCache]
    seen: int
    decode: bool
    positions: list[int]
    token_ids: list[int]
    chunks: list[list[ChunkRead]]
    layers: list[list[LayerShares]]
    written: list[int | None]


class Trace:
    """What memory did while it was watched; made by :meth:`memcore.memory.Memory.trace`.

    A row of the batch is one sequence. Tokens that were written before anything had left the window read no memory, and
    are not listed.
    """

    def __init__(self) -> None:
        self._steps: list[_Step] = []

    def note(self, cache: MemoryCache, layer: MemoryLayer, weights: Tensor) -> None:
        """Take down what a layer attended to for the last token of the piece under way.

        Args:
            cache: of the forward under way.
            layer: a layer of it whose window is active.
            weights: ``[B, Hq, P + W + T]`` attention weights of that token, the first ``P`` on sinks and chunks.
        """
        step = self._step(cache)
        shares = weights.float().mean(dim=1).cpu()
        columns, prefix = layer.memory_columns(), layer.prefix_length
        recalled = cache.recalled.get(layer.setup.index, [None] * len(shares))
        for row, share in enumerate(shares):
            memory, sinks = share[:prefix][columns[row]], share[:prefix][~columns[row]]
            step.layers[row].append(
                LayerShares(
                    layer=layer.setup.index,
                    memory=float(memory.sum()),
                    sinks=float(sinks.sum()),
                    window=float(share[prefix:].sum()),
                )
            )
            found = recalled[row]
            if found is not None:
                mass = memory.view(found.token_ids.shape).sum(dim=1).tolist()
                step.chunks[row] += [
                    ChunkRead(layer=layer.setup.index, id=id_, start=start, token_ids=token_ids, share=part)
                    for id_, start, token_ids, part in zip(
                        found.ids.tolist(), found.starts.tolist(), found.token_ids.cpu(), mass, strict=True
                    )
                ]

    def _step(self, cache: MemoryCache) -> _Step:
        window = cache.window
        assert window is not None
        # By reference and not by id: the next cache may lie where one lay that is gone.
        reference = weakref.ref(cache)
        latest = self._steps[-1] if self._steps else None
        if latest is None or (latest.cache, latest.seen) != (reference, window.seen):
            latest = _Step(
                cache=reference,
                seen=window.seen,
                decode=window.decode,
                positions=window.columns.positions[:, -1].tolist(),
                token_ids=window.columns.token_ids[:, -1].tolist(),
                chunks=[[] for _ in range(window.batch)],
                layers=[[] for _ in range(window.batch)],
                written=[None] * window.batch,
            )
            self._steps.append(latest)
        return latest

    def wrote(self, token_ids: list[int]) -> None:
        """Tell the token that each row wrote last."""
        if self._steps:
            self._steps[-1].written = [*token_ids]

    def tokens(self, row: int = 0) -> list[TokenTrace]:
        """Return what was read for each token that was generated, in order.

        Args:
            row: of which sequence of the batch.
        """
        traced = []
        for step, after in zip(self._steps, [*self._steps, None][1:], strict=True):
            follows = after is not None and after.cache == step.cache and after.decode
            if follows or after is None or after.cache != step.cache:
                written = after.token_ids[row] if after is not None and follows else step.written[row]
                traced.append(_traced(step, row, written))
        return traced

    def latest(self, row: int = 0) -> TokenTrace | None:
        """Return what was read for the token that is written after the latest piece; None if there was no piece yet.

        Args:
            row: of which sequence of the batch.
        """
        return _traced(self._steps[-1], row, self._steps[-1].written[row]) if self._steps else None

    def passages(self, row: int = 0) -> list[PassageRead]:
        """Return what was read for all tokens that were generated, together, the largest share first.

        Passages that begin at one position and are not the same, as of two texts read in this trace, are two.

        Args:
            row: of which sequence of the batch.
        """
        tokens = self.tokens(row)
        shares: dict[tuple[int, tuple[int, ...]], float] = {}
        texts: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        for token in tokens:
            for chunk in token.chunks:
                key = (chunk.start, tuple(chunk.token_ids.tolist()))
                shares[key] = shares.get(key, 0.0) + chunk.share / len(token.layers) / len(tokens)
                texts[key] = chunk.token_ids
        return [
            PassageRead(start=key[0], token_ids=texts[key], share=share)
            for key, share in sorted(shares.items(), key=lambda item: -item[1])
        ]

    def explain(self, tokenizer: PreTrainedTokenizerBase, row: int = 0, *, top: int = 3) -> str:
        """Return what the generated tokens rest on, as text: the passages, then a line for each token.

        Shares are of all the attention of the layers that read, and of all tokens where passages are listed.

        Args:
            tokenizer: the model's.
            row: of which sequence of the batch.
            top: passages to name for each token, those with the largest share.
        """
        tokens = self.tokens(row)
        if not tokens:
            return "no token read from memory: nothing had left the window"
        by_token = [token.shares() for token in tokens]
        named = {start for shares in by_token for start in list(shares)[:top]}
        lines = [
            f"{passage.share:6.1%} [{passage.start:,}] {' '.join(_text(tokenizer, passage.token_ids.tolist()).split())}"
            for passage in self.passages(row)
            if passage.start in named
        ]
        for token, shares in zip(tokens, by_token, strict=True):
            written = "the next token" if token.token_id is None else repr(_text(tokenizer, [token.token_id]))
            best = ", ".join(f"[{start:,}] {share:.1%}" for start, share in list(shares.items())[:top])
            lines.append(f"{written} at {token.position:,}: {sum(shares.values()):.1%} from memory: {best}")
        return "\n".join(lines)


def _traced(step: _Step, row: int, token_id: int | None) -> TokenTrace:
    return TokenTrace(
        position=step.positions[row] + 1,
        token_id=token_id,
        chunks=tuple(sorted(step.chunks[row], key=lambda chunk: -chunk.share)),
        layers=tuple(step.layers[row]),
    )


def _text(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> str:
    return str(tokenizer.decode([token for token in token_ids if token != UNKNOWN_TOKEN]))
