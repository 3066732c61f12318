"""How the payload of a chunk becomes the bytes of one value, and how values become tensors again."""

from __future__ import annotations

import itertools
import math
import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import Final

import attrs
import torch
from torch import Tensor
from xxhash import xxh3_64_intdigest

from memcore.chunk import UNKNOWN_TOKEN, ChunkBatch
from memcore.compression import compress, decompress
from memcore.errors import CorruptedError
from memcore_lmdb.arena import Arena
from memcore_lmdb.format import ChunkShape

_HEAD: Final = struct.Struct("<QqI12x")
"""Checksum of all that follows, position id of the first token, tokens. Padded so that what follows lies well."""

_CHECKSUM: Final = struct.Struct("<Q")

_ALIGNMENT: Final = 64

Head = tuple[int, int, int]
"""Checksum, position id of the first token, tokens."""

_Sized = tuple[int, tuple[int, ...], tuple[int, ...]]
"""For some number of tokens a section's bytes, its shape, and the bytes from one place to the next in each dimension,
those of the last one being single bytes."""

_TOKENS: Final = -1
"""Stands for the number of tokens in the shape of a section."""


@attrs.frozen
class Section:
    """One tensor of a payload.

    Attributes:
        name: what it is called.
        shape: of one chunk, ``-1`` where the number of tokens belongs.
        dtype: of its numbers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def nbytes(self, tokens: int) -> int:
        """Return the bytes it takes for a chunk of this many tokens."""
        return int(self.dtype.itemsize) * math.prod(self.sized(tokens))

    def sized(self, tokens: int) -> tuple[int, ...]:
        """Return the shape for a chunk of this many tokens."""
        return tuple(tokens if length == _TOKENS else length for length in self.shape)

    def strides(self, tokens: int) -> tuple[int, ...]:
        """Return the bytes between neighbours in each dimension, single bytes being those of the last one."""
        shape = self.sized(tokens)
        return (*(int(self.dtype.itemsize) * math.prod(shape[at:]) for at in range(1, len(shape))), 1)


class PayloadLayout:
    """Where what is in a payload: a head of 32 bytes, then the sections, all of the chunk's true length.

    Args:
        shape: of the chunks.
        compression: how keys and values are kept.
    """

    def __init__(self, shape: ChunkShape, compression: str) -> None:
        self.shape = shape
        self.compression = compression
        heads, key_size, value_size = shape.heads, shape.key_size, shape.value_size
        small = compression == "int8"
        dtype = torch.int8 if small else shape.torch_dtype
        self.sections: tuple[Section, ...] = (
            Section("token_ids", (_TOKENS,), torch.int64),
            *(
                (
                    Section("key_scales", (heads, key_size), torch.float32),
                    Section("key_offsets", (heads, key_size), torch.float32),
                    Section("value_scales", (heads, _TOKENS), torch.float32),
                    Section("value_offsets", (heads, _TOKENS), torch.float32),
                )
                if small
                else ()
            ),
            Section("keys", (heads, _TOKENS, key_size), dtype),
            Section("values", (heads, _TOKENS, value_size), dtype),
        )
        self._with_embeddings = (
            *self.sections,
            Section("embeddings", (shape.vectors, shape.size), torch.float32),
        )
        self._shapes: dict[int, list[_Sized]] = {}
        self._fixed = _HEAD.size + sum(section.nbytes(0) for section in self.sections)
        self._per_token = sum(section.nbytes(1) - section.nbytes(0) for section in self.sections)

    def size(self, tokens: int) -> int:
        """Return the bytes of the payload of a chunk of this many tokens."""
        return self._fixed + self._per_token * tokens

    def nbytes(self, count: int, tokens: int) -> int:
        """Return the bytes of embeddings and payloads of ``count`` chunks that have ``tokens`` tokens together."""
        return count * (self._fixed + self.shape.vector_bytes) + tokens * self._per_token

    def encode(self, chunks: ChunkBatch, lengths: Sequence[int], arena: Arena) -> list[memoryview]:
        """Return the payload of each chunk, in memory of the arena.

        Args:
            chunks: what to encode.
            lengths: ``chunks.lengths``.
            arena: where to.

        Raises:
            BackendError: they cannot be compressed as they should be.
        """
        payload = self._payload(chunks)
        starts = chunks.starts.tolist()
        values: list[memoryview] = []
        for first, end in _runs(lengths):
            length = lengths[first]
            size = self.size(length)
            step = arena.room(size)
            for at in range(first, end, step):
                rows = range(at, min(at + step, end))
                flat = arena.take(len(rows) * size)
                self._write(payload, rows, length, flat)
                for place, row in enumerate(rows):
                    value = flat[place * size : place * size + size]
                    _HEAD.pack_into(value, 0, 0, starts[row], length)
                    _CHECKSUM.pack_into(value, 0, xxh3_64_intdigest(value[_CHECKSUM.size :]))
                    values.append(value)
        return values

    def _write(self, payload: dict[str, Tensor], rows: range, length: int, room: memoryview) -> None:
        """Write the sections of these rows, all of this length, to where they belong in ``room``."""
        buffer = torch.frombuffer(room, dtype=torch.uint8)
        size = len(room) // len(rows)
        at = _HEAD.size
        for section, (wide, shape, strides) in zip(self.sections, self._sized(length), strict=False):
            if wide:
                part = payload[section.name]
                if len(rows) < part.shape[0]:
                    part = part[rows.start : rows.stop]
                if part.shape[1:] != shape:
                    part = part.narrow(1 + section.shape.index(_TOKENS), 0, length)
                part = _as_bytes(part)
                # The sections of a row lie side by side, so the rows of a section lie apart.
                buffer.as_strided(part.shape, (size, *strides), at).copy_(part)
            at += wide

    def decode(
        self, heads: Sequence[Head], values: Sequence[memoryview], vectors: Sequence[memoryview], width: int
    ) -> ChunkBatch:
        """Copy chunks out into a batch.

        Args:
            heads: of the payloads, from :meth:`heads`.
            values: ``N`` payloads, each of which :meth:`problem` finds nothing wrong with.
            vectors: the bytes of their embeddings.
            width: the ``C`` wanted, at least the length of the longest.
        """
        _, starts, lengths = zip(*heads, strict=True) if heads else ((), (), ())
        if lengths.count(width) == len(lengths):
            payload = self._joined(values, vectors, width)
        else:
            payload = self._padded(lengths, values, vectors, width)
        held = _int64(lengths)
        if self.compression == "int8":
            payload["keys"], payload["values"] = decompress(payload, held, self.shape.torch_dtype)
        return ChunkBatch(
            embeddings=payload["embeddings"],
            keys=payload["keys"],
            values=payload["values"],
            starts=_int64(starts),
            lengths=held,
            token_ids=payload["token_ids"],
        )

    def _joined(self, values: Sequence[memoryview], vectors: Sequence[memoryview], tokens: int) -> dict[str, Tensor]:
        """Return the sections of chunks that all have so many tokens, ``[N, ...]`` each, and their embeddings.

        They are parts of one piece of memory: the system hands out and takes back many small ones page by page, which
        can take as long as the copy.
        """
        shapes = self._sized(tokens)
        parts: list[memoryview | bytes] = []
        first = _HEAD.size
        for wide, _, _ in shapes[:-1]:
            last = first + wide
            parts += [value[first:last] for value in values]
            parts.append(_padding(len(values) * wide))
            first = last
        room = bytearray().join((*parts, *vectors))
        columns, at = {}, 0
        for section, (wide, shape, _) in zip(self._with_embeddings, shapes, strict=True):
            columns[section.name] = _part(room, at, (len(values), *shape), section.dtype)
            at += len(values) * wide + len(_padding(len(values) * wide))
        return columns

    def _padded(
        self, lengths: Sequence[int], values: Sequence[memoryview], vectors: Sequence[memoryview], width: int
    ) -> dict[str, Tensor]:
        """Return the same of chunks of different lengths, padded to ``width`` tokens."""
        columns = {
            section.name: torch.zeros(len(values), *section.sized(width), dtype=section.dtype)
            for section in self._with_embeddings
        }
        columns["token_ids"].fill_(UNKNOWN_TOKEN)
        for row, (value, length) in enumerate(zip(values, lengths, strict=True)):
            at = _HEAD.size
            for section, (wide, _, _) in zip(self.sections, self._sized(length), strict=False):
                _copy_short(section, columns[section.name][row], value[at : at + wide], length)
                at += wide
            _copy_short(self._with_embeddings[-1], columns["embeddings"][row], vectors[row], length)
        return columns

    def problem(self, value: memoryview) -> str:
        """Return what is wrong with a payload, or nothing. Looks at every byte."""
        if self.heads([value]) is None:
            return f"the payload has {len(value)} bytes, which is not what its length calls for"
        if _CHECKSUM.unpack_from(value)[0] != xxh3_64_intdigest(value[_CHECKSUM.size :]):
            return "the checksum of the payload does not match"
        return ""

    def heads(self, values: Sequence[memoryview]) -> list[Head] | None:
        """Return the heads of payloads, None unless all have as many bytes as their lengths call for."""
        sizes = [len(value) for value in values]
        if min(sizes, default=_HEAD.size) < _HEAD.size:
            return None
        heads = [_HEAD.unpack_from(value) for value in values]
        fit = sizes == [self._fixed + self._per_token * length for _, _, length in heads]
        return heads if fit and all(length for _, _, length in heads) else None

    def _sized(self, tokens: int) -> list[_Sized]:
        """Return what each section of a chunk of so many tokens takes, and last what its embeddings do."""
        shapes = self._shapes.get(tokens)
        if shapes is None:
            shapes = self._shapes[tokens] = [
                (section.nbytes(tokens), section.sized(tokens), section.strides(tokens))
                for section in self._with_embeddings
            ]
        return shapes

    def _payload(self, chunks: ChunkBatch) -> dict[str, Tensor]:
        if self.compression == "int8":
            payload = compress(chunks.keys.detach(), chunks.values.detach(), chunks.lengths)
        else:
            payload = {"keys": chunks.keys.detach(), "values": chunks.values.detach()}
        payload["token_ids"] = chunks.token_ids
        return {name: tensor.cpu() for name, tensor in payload.items()}


def payload_length(value: memoryview) -> int:
    """Return how many tokens a payload says to hold."""
    return int(_HEAD.unpack_from(value)[2])


def raise_damaged(namespace: str, id: int, problem: str) -> None:
    """Raise CorruptedError for a chunk, if there is a problem."""
    if problem:
        raise CorruptedError(
            f"namespace {namespace!r}, chunk {id}: {problem}; the others can be read. Evict it, or restore the memory "
            "from a copy"
        )


def _runs(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield where each run of equal lengths begins and ends."""
    if lengths and lengths.count(lengths[0]) == len(lengths):  # as a rule
        yield 0, len(lengths)
        return
    first = 0
    for _, run in itertools.groupby(lengths):
        end = first + sum(1 for _ in run)
        yield first, end
        first = end


def _as_bytes(tensor: Tensor) -> Tensor:
    """Return the same memory as uint8, the last dimension being wider."""
    if tensor.stride(-1) != 1:
        tensor = tensor.clone(memory_format=torch.contiguous_format)  # contiguous() may find that one row is
    return tensor.view(torch.uint8)


def _int64(numbers: Sequence[int]) -> Tensor:
    """Return the numbers as ``[N]`` int64, in a third of the time that ``torch.tensor`` takes for a few."""
    return torch.frombuffer(array("q", numbers), dtype=torch.int64) if numbers else torch.empty(0, dtype=torch.int64)


def _part(room: bytearray, at: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a tensor that lies in ``room`` from this byte on."""
    count = math.prod(shape)
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(room, dtype=dtype, count=count, offset=at).view(shape)


def _padding(nbytes: int) -> bytes:
    """Return what has to follow so many bytes for what comes next to lie well."""
    return bytes(-nbytes % _ALIGNMENT)


def _copy_short(section: Section, row: Tensor, value: memoryview, length: int) -> None:
    """Copy a section of a chunk of ``length`` tokens to the front of a row that is wider."""
    if not len(value):
        return
    if _TOKENS in section.shape:
        row = row.narrow(section.shape.index(_TOKENS), 0, length)
    room = row.view(torch.uint8)
    # The bytes of a small value lie anywhere, so that they are no numbers yet.
    room.copy_(torch.frombuffer(bytearray(value), dtype=torch.uint8).view(room.shape))
