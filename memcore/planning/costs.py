"""Bytes and operations of a model with a memory of some length: the arithmetic, and nothing measured.

What is stored and kept is what :mod:`memcore.cache` and the backends store and keep: tests compare the two byte by
byte.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import attrs
import torch
from torch import Tensor

from memcore.attention_shape import AttentionShape
from memcore.chunk import ChunkBatch
from memcore.config import MemoryConfig
from memcore.embedder import ChunkKeys, RecentQueries
from memcore.errors import ConfigError
from memcore.footprint import Footprint
from memcore.options import structure_options
from memcore.planning.model_shape import LayerShape, ModelShape
from memcore.planning.sizes import show_bytes
from memcore.plugins import registry
from memcore.products import area, worthwhile_parts

_FLOAT32: Final = 4

_BOOKKEEPING: Final = 5 * 8
"""Bytes that the bank keeps of each chunk: two ids, where it lies, its last use and its retrievals."""


@attrs.frozen(kw_only=True)
class LocalBytes:
    """What is beside the model while it reads or writes, in bytes, for all sequences and layers.

    Attributes:
        window: keys and values of the window and the sinks, and the latest queries.
        retrieved: the chunks that came back, laid out with a copy of the sinks before the window.
        joined: room that the window's tensor takes beyond the window: it is the end of what the last piece attended to,
            which began with ``retrieved``.
        sliding: keys and values of layers with sliding attention.
        working: an estimate of what else is there while a segment is read: keys and values of a layer joined,
            candidates of a layer being compared, hidden states of a layer, the logits of one token.
    """

    window: int
    retrieved: int
    joined: int
    sliding: int
    working: int

    @property
    def state(self) -> int:
        """What a session keeps of it on disk, to go on from."""
        return self.window + self.retrieved + self.sliding

    @property
    def total(self) -> int:
        """All of it."""
        return self.state + self.joined + self.working


@attrs.frozen(kw_only=True)
class StepBytes:
    """What moves for one choice of chunks, in bytes, for all sequences and layers.

    Attributes:
        queries: search vectors from the model to the memory, as for a segment; a generated token's choice moves those
            that were not searched for in the last one.
        read: what is read of candidates, in the memory: embeddings and payloads.
        keys: keys of candidates from the memory to the model, where they are compared with the queries.
        chosen: keys and values of the chunks that come back, from the memory to the model.
    """

    queries: int
    read: int
    keys: int
    chosen: int

    @property
    def to_model(self) -> int:
        """From the memory to the model."""
        return self.keys + self.chosen


@attrs.frozen(kw_only=True)
class Operations:
    """Operations of one generated token of one sequence, a multiplication and an addition being two.

    Norms, rotations, softmax and sampling are not counted.

    Attributes:
        weights: products with all weights; a mixture of experts uses fewer.
        full: attention to everything, in layers that do, and sliding attention.
        memory: attention to sinks, chunks and window instead.
        search: comparing queries with every search vector, as ``exact`` and ``lmdb`` do: those that were not asked for
            the last choice, where they are not zero. An index compares some per cent of the vectors.
        rerank: comparing queries with candidates.
    """

    weights: float
    full: float
    memory: float
    search: float
    rerank: float


@attrs.frozen(kw_only=True)
class Costs:
    """What a model with a memory takes.

    Attributes:
        tokens: read, in each sequence.
        batch: sequences.
        chunks: in memory, of each sequence and remembering layer.
        stored: tokens in memory, of each sequence.
        weights: bytes.
        local: beside the weights.
        bank: what the chunks take in the backend.
        bookkeeping: bytes of the bank's own, in RAM.
        full_cache: bytes of keys and values for full attention to as many tokens.
        step: what moves for one choice of chunks.
        every: generated tokens that share one choice.
        segment: tokens read that share one choice.
        operations: of a generated token.
    """

    tokens: int
    batch: int
    chunks: int
    stored: int
    weights: int
    local: LocalBytes
    bank: Footprint
    bookkeeping: int
    full_cache: int
    step: StepBytes
    every: int
    segment: int
    operations: Operations

    @property
    def per_token(self) -> float:
        """Bytes of one token in memory, in all layers."""
        return (self.bank.total + self.bookkeeping) / (self.batch * self.stored)


def chunks_of(tokens: int, config: MemoryConfig) -> int:
    """Return how many chunks have left the window after so many tokens, of one sequence."""
    over = tokens - config.room
    return max(0, -(-over // config.chunk_size))


def costs_of(shape: ModelShape, config: MemoryConfig, *, tokens: int, batch: int = 1) -> Costs:
    """Work out what a memory costs.

    Args:
        shape: of the model.
        config: of its memory, ``shape.config`` or a variant with the same layers.
        tokens: read, in each sequence.
        batch: sequences.

    Raises:
        ConfigError: no memory is needed for so few tokens, or the model cannot read so many.
        BackendError: the backend does not say what chunks take.
        MissingDependencyError: it needs a package that is not installed.
    """
    _check_length(shape, config, tokens)
    left = chunks_of(tokens, config)
    kept = left if config.capacity is None else min(left, config.capacity // config.chunk_size)
    local = _local(shape, config, tokens, batch, left, kept)
    return Costs(
        tokens=tokens,
        batch=batch,
        chunks=kept,
        stored=kept * config.chunk_size,
        weights=shape.weight_bytes,
        local=local,
        bank=_bank(shape, config, kept, batch),
        bookkeeping=_BOOKKEEPING * kept * batch * len(shape.remembering),
        full_cache=_full_cache(shape, tokens, batch),
        step=_step(shape, config, kept, batch),
        every=config.retrieve_every,
        segment=config.segment_length,
        operations=_operations(shape, config, tokens, kept),
    )


def _check_length(shape: ModelShape, config: MemoryConfig, tokens: int) -> None:
    if shape.longest_text is not None and tokens > shape.longest_text:
        raise ConfigError(
            f"this {shape.model_type} reads no text longer than {shape.longest_text:,} tokens, with or without memory, "
            f"for it has no vectors for further positions; got {tokens:,}"
        )
    if tokens <= config.room:
        raise ConfigError(
            f"{tokens:,} tokens fit the window ({config.window_length:,}) and the sinks ({config.sinks}): nothing "
            "leaves it, so nothing is stored, and the model computes what it would without memory, with "
            f"{show_bytes(_full_cache(shape, tokens, 1))} of keys and values a sequence; give more tokens or a smaller "
            "window"
        )


def _full_cache(shape: ModelShape, tokens: int, batch: int) -> int:
    numbers = sum(layer.attention.cached * tokens for layer in shape.full)
    return batch * shape.dtype.itemsize * (numbers + _sliding_numbers(shape, tokens))


def _sliding_numbers(shape: ModelShape, tokens: int) -> int:
    # transformers keeps one token less than such a layer sees, for the next one comes with it.
    return sum(layer.attention.cached * min(tokens, (layer.span or 1) - 1) for layer in shape.sliding)


def _local(shape: ModelShape, config: MemoryConfig, tokens: int, batch: int, left: int, kept: int) -> LocalBytes:
    in_window = tokens - config.sinks - left * config.chunk_size
    back = min(config.chunks, kept) * config.chunk_size
    window = retrieved = 0
    for layer in shape.full:
        window += layer.attention.numbers * (in_window + config.sinks)
        retrieved += layer.attention.numbers * (config.sinks + (back if layer.reads else 0))
        if layer.remembers:
            window += layer.attention.queries * layer.attention.key_size * min(config.query_tokens, tokens)
    size = batch * shape.dtype.itemsize
    return LocalBytes(
        window=size * window,
        retrieved=size * retrieved,
        joined=size * retrieved,
        sliding=size * _sliding_numbers(shape, tokens),
        working=_working(shape, config, batch, in_window + back),
    )


def _working(shape: ModelShape, config: MemoryConfig, batch: int, attended: int) -> int:
    size, segment = shape.dtype.itemsize, config.segment_length
    joined = max(layer.attention.numbers for layer in shape.full) * (attended + config.sinks + segment) * size
    # Keys as they came, and in float32 before, while and after they are turned back.
    compared = max(
        (layer.attention.heads * layer.attention.key_size * (size + 3 * _FLOAT32) for layer in shape.remembering),
        default=0,
    )
    compared *= (config.candidates or 0) * config.chunk_size  # of one sequence after the other
    hidden = segment * (4 * shape.hidden_size + 3 * shape.intermediate_size) * size
    mask = segment * (attended + config.sinks + segment)
    return batch * (joined + hidden + mask) + compared


def _like(attention: AttentionShape, shape: ModelShape, config: MemoryConfig) -> ChunkBatch:
    """Return a chunk of zeros as a layer would store it."""
    tokens = torch.zeros(1, config.chunk_size, dtype=torch.int64)
    keys = torch.zeros(1, attention.heads, config.chunk_size, attention.key_size)
    values = torch.zeros(1, attention.heads, config.chunk_size, attention.value_size, dtype=shape.dtype)
    return ChunkBatch(
        embeddings=shape.embedder.embed_chunks(ChunkKeys(keys=keys, token_ids=tokens)),
        keys=keys.to(shape.dtype),
        values=values,
        starts=torch.zeros(1, dtype=torch.int64),
        lengths=torch.full((1,), config.chunk_size),
        token_ids=tokens,
    )


def _by_attention(layers: tuple[LayerShape, ...]) -> Counter[AttentionShape]:
    return Counter(layer.attention for layer in layers)


def _bank(shape: ModelShape, config: MemoryConfig, chunks: int, batch: int) -> Footprint:
    backend = registry().load_component("backends", config.backend)
    options: object = structure_options(
        backend.Options, config.backend_options, f"backend_options of {config.backend!r}"
    )
    found = [
        attrs.astuple(backend.footprint(options, _like(attention, shape, config), chunks, batch * layers))
        for attention, layers in _by_attention(shape.remembering).items()
    ]
    names = [field.name for field in attrs.fields(Footprint)]
    return Footprint(**{name: sum(each[place] for each in found) for place, name in enumerate(names)})


def _compared(config: MemoryConfig, chunks: int) -> int:
    """Return how many candidates are compared by exact scores; none where all of them come back anyway."""
    candidates = min(config.candidates or 0, chunks)
    return candidates if candidates > config.chunks else 0


def _searches(config: MemoryConfig, chunks: int) -> bool:
    """Return whether candidates have to be found; else there are so few chunks that all of them are."""
    return chunks > max(config.chunks, config.candidates or 0)


def _queries(attention: AttentionShape, shape: ModelShape, config: MemoryConfig) -> Tensor:
    """Return search vectors as a layer asks with, ``[Q, E]``."""
    asked = torch.ones(attention.queries, config.query_tokens, attention.key_size)
    asked[..., ::2] = -1  # of both signs, as embedders may treat them apart
    recent = RecentQueries(
        queries=asked, kv_heads=attention.heads, token_ids=torch.zeros(config.query_tokens, dtype=torch.int64)
    )
    return shape.embedder.embed_queries(recent)


def _multiplied(queries: Tensor) -> int:
    """Return how many numbers of these queries, ``[Q, E]``, exact search multiplies with a vector each."""
    parts = worthwhile_parts(queries)
    return sum(map(area, parts)) if parts else queries.numel()


def _step(shape: ModelShape, config: MemoryConfig, chunks: int, batch: int) -> StepBytes:
    size, width = shape.dtype.itemsize, config.chunk_size
    back, compared = min(config.chunks, chunks), _compared(config, chunks)
    queries = keys = 0
    for attention, layers in _by_attention(shape.remembering).items():
        if _searches(config, chunks):
            queries += layers * _queries(attention, shape, config).numel() * _FLOAT32
        keys += layers * compared * width * attention.heads * attention.key_size * size
    bank = _bank(shape, config, 1, 1)
    read = max(back, compared) * (bank.payload + bank.vectors)
    chosen = sum(back * width * layer.attention.numbers * size for layer in shape.reading)
    return StepBytes(queries=batch * queries, read=batch * read, keys=batch * keys, chosen=batch * chosen)


def _operations(shape: ModelShape, config: MemoryConfig, tokens: int, chunks: int) -> Operations:
    def of_a_key(layer: LayerShape) -> int:  # its product with the queries, and its part in the sum of values
        return 2 * layer.attention.queries * (layer.attention.key_size + layer.attention.value_size)

    back = min(config.chunks, chunks) * config.chunk_size
    sliding = sum(of_a_key(layer) * min(tokens, layer.span or 0) for layer in shape.sliding)
    near = config.room
    search = rerank = 0.0
    for attention, layers in _by_attention(shape.remembering).items():
        numbers = _multiplied(_queries(attention, shape, config))
        vectors = _like(attention, shape, config).embeddings.shape[1]
        search += layers * 2 * numbers * vectors * chunks * _searches(config, chunks)
        compared = _compared(config, chunks) * config.chunk_size
        rerank += layers * 2 * attention.queries * config.query_tokens * attention.key_size * compared
    return Operations(
        weights=2.0 * shape.parameters,
        full=float(sum(of_a_key(layer) * tokens for layer in shape.full) + sliding),
        memory=float(sum(of_a_key(layer) * (near + (back if layer.reads else 0)) for layer in shape.full) + sliding),
        search=search / max(config.query_tokens, config.retrieve_every),  # each token asks once
        rerank=rerank / config.retrieve_every,
    )
