"""How the payload of a chunk becomes the bytes of one value, and how values become tensors again."""

from __future__ import annotations

import itertools
import math
import struct
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

_Sized = tuple[int, tuple[int, ...], torch.dtype]
"""Bytes and shape of a section for some number of tokens, and its dtype."""

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

    def encode(self, chunks: ChunkBatch, arena: Arena) -> list[memoryview]:
        """Return the payload of each chunk, in memory of the arena.

        Raises:
            BackendError: they cannot be compressed as they should be.
        """
        payload = self._payload(chunks)
        starts, lengths = chunks.starts.tolist(), chunks.lengths.tolist()
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
        for section, (wide, shape, _) in zip(self.sections, self._sized(length), strict=False):
            if wide:
                part = payload[section.name]
                if len(rows) < part.shape[0]:
                    part = part[rows.start : rows.stop]
                if part.shape[1:] != shape:
                    part = part.narrow(1 + section.shape.index(_TOKENS), 0, length)
                part = _as_bytes(part)
                # The sections of a row lie side by side, so the rows of a section lie apart.
                strides, stride = [1], 1
                for count in part.shape[:1:-1]:
                    stride *= count
                    strides.append(stride)
                buffer.as_strided(part.shape, (size, *reversed(strides)), at).copy_(part)
            at += wide

    def decode(self, values: Sequence[memoryview], vectors: Sequence[memoryview], width: int) -> ChunkBatch:
        """Copy chunks out into a batch.

        Args:
            values: ``N`` payloads, each of which :meth:`problem` finds nothing wrong with.
            vectors: the bytes of their embeddings.
            width: the ``C`` wanted, at least the length of the longest.
        """
        heads = [_HEAD.unpack_from(value) for value in values]
        lengths = [length for _, _, length in heads]
        even = lengths.count(width) == len(lengths)
        columns, parts = self._columns(len(values), width, fill=not even)
        payload = {section.name: column for section, column in zip(self._with_embeddings, columns, strict=True)}
        _copy_rows(parts[-1:], vectors, 0)
        if even:
            _copy_rows(parts[:-1], values, _HEAD.size)
        else:
            payload["token_ids"].fill_(UNKNOWN_TOKEN)
            for row, (value, length) in enumerate(zip(values, lengths, strict=True)):
                at = _HEAD.size
                for section, column in zip(self.sections, columns, strict=False):
                    wide = section.nbytes(length)
                    _copy_short(section, column[row], value[at : at + wide], length)
                    at += wide
        held = torch.full((len(lengths),), width) if even else torch.tensor(lengths, dtype=torch.int64)
        if self.compression == "int8":
            payload["keys"], payload["values"] = decompress(payload, held, self.shape.torch_dtype)
        return ChunkBatch(
            embeddings=payload["embeddings"],
            keys=payload["keys"],
            values=payload["values"],
            starts=torch.tensor([start for _, start, _ in heads], dtype=torch.int64),
            lengths=held,
            token_ids=payload["token_ids"],
        )

    def problem(self, value: memoryview) -> str:
        """Return what is wrong with a payload, or nothing. Looks at every byte."""
        if not self.fits([value]):
            return f"the payload has {len(value)} bytes, which is not what its length calls for"
        if _CHECKSUM.unpack_from(value)[0] != xxh3_64_intdigest(value[_CHECKSUM.size :]):
            return "the checksum of the payload does not match"
        return ""

    def fits(self, values: Sequence[memoryview]) -> bool:
        """Return whether all payloads have as many bytes as their lengths call for."""
        sizes = [len(value) for value in values]
        return min(sizes, default=_HEAD.size) >= _HEAD.size and sizes == [
            self._fixed + self._per_token * length for _, _, length in map(_HEAD.unpack_from, values)
        ]

    def _sized(self, tokens: int) -> list[_Sized]:
        """Return what each section of a chunk of so many tokens takes, and last what its embeddings do."""
        shapes = self._shapes.get(tokens)
        if shapes is None:
            shapes = self._shapes[tokens] = [
                (section.nbytes(tokens), section.sized(tokens), section.dtype) for section in self._with_embeddings
            ]
        return shapes

    def _columns(self, rows: int, width: int, *, fill: bool) -> tuple[list[Tensor], list[tuple[memoryview, int]]]:
        """Return room for so many rows of each section and of embeddings, of ``width`` tokens, with zeros if ``fill``.

        They are parts of one allocation: the system hands out and takes back many small ones page by page, which can
        take as long as the copy.

        Returns:
            The columns, ``[rows, ...]``, and the memory of each, with the bytes of a row.
        """
        shapes = self._sized(width)
        starts = [0, *itertools.accumulate(-(-rows * size // _ALIGNMENT) * _ALIGNMENT for size, _, _ in shapes)]
        room = (torch.zeros if fill else torch.empty)(starts[-1], dtype=torch.uint8)
        flat = room.numpy().data
        columns, parts = [], []
        for start, (size, shape, dtype) in zip(starts, shapes, strict=False):
            columns.append(room[start : start + rows * size].view(dtype).view(rows, *shape))
            parts.append((flat[start : start + rows * size], size))
        return columns, parts

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


def _copy_rows(parts: Sequence[tuple[memoryview, int]], values: Sequence[memoryview], at: int) -> None:
    """Copy each value to one row of every part, which lie one behind the other from this place on."""
    rooms = []
    for part, size in parts:
        if size:
            rooms.append((part, size, at, at + size))
            at += size
    for row, value in enumerate(values):  # in the order in which they lie there, which is what the CPU expects
        for part, size, first, last in rooms:
            part[row * size : row * size + size] = value[first:last]


def _copy_short(section: Section, row: Tensor, value: memoryview, length: int) -> None:
    """Copy a section of a chunk of ``length`` tokens to the front of a row that is wider."""
    if not len(value):
        return
    if _TOKENS in section.shape:
        row = row.narrow(section.shape.index(_TOKENS), 0, length)
    room = row.view(torch.uint8)
    # The bytes of a small value lie anywhere, so that they are no numbers yet.
    room.copy_(torch.frombuffer(bytearray(value), dtype=torch.uint8).view(room.shape))
