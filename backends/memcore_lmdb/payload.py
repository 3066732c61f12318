"""How the payload of a chunk becomes the bytes of one value, and how values become tensors again."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Final

import attrs
import torch
from torch import Tensor
from xxhash import xxh3_64_intdigest

from memcore.chunk import UNKNOWN_TOKEN, ChunkBatch
from memcore.compression import compress, decompress
from memcore.errors import CorruptedError
from memcore_lmdb.format import ChunkShape

_HEAD: Final = struct.Struct("<QqI12x")
"""Checksum of all that follows, position id of the first token, tokens. Padded so that what follows lies well."""

_CHECKSUM: Final = struct.Struct("<Q")

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
        self.sections = (
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
        self._fixed = self.size(0)
        self._per_token = self.size(1) - self._fixed

    def size(self, tokens: int) -> int:
        """Return the bytes of the payload of a chunk of this many tokens."""
        return _HEAD.size + sum(section.nbytes(tokens) for section in self.sections)

    def nbytes(self, count: int, tokens: int) -> int:
        """Return the bytes of embeddings and payloads of ``count`` chunks that have ``tokens`` tokens together."""
        vectors: int = self.shape.vectors * self.shape.size * torch.float32.itemsize
        return count * (self._fixed + vectors) + tokens * self._per_token

    def encode(self, chunks: ChunkBatch) -> list[memoryview]:
        """Return the payload of each chunk.

        Raises:
            BackendError: they cannot be compressed as they should be.
        """
        payload = self._payload(chunks)
        starts, lengths = chunks.starts.tolist(), chunks.lengths.cpu()
        values: list[memoryview] = [memoryview(b"")] * len(chunks)
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero().flatten()
            size = self.size(length)
            buffer = torch.empty(len(rows), size, dtype=torch.uint8)
            at = _HEAD.size
            for section in self.sections:
                part = payload[section.name]
                if len(rows) < len(chunks):
                    part = part[rows]
                if _TOKENS in section.shape:
                    part = part.narrow(1 + section.shape.index(_TOKENS), 0, length)
                wide = section.nbytes(length)
                if wide:
                    part = _as_bytes(part)
                    buffer[:, at : at + wide].view(part.shape).copy_(part)
                at += wide
            flat = buffer.view(-1).numpy().data
            for place, row in enumerate(rows.tolist()):
                value = flat[place * size : (place + 1) * size]
                _HEAD.pack_into(value, 0, 0, starts[row], length)
                _CHECKSUM.pack_into(value, 0, xxh3_64_intdigest(value[_CHECKSUM.size :]))
                values[row] = value.toreadonly()
        return values

    def decode(self, values: Sequence[memoryview], embeddings: Tensor, width: int) -> ChunkBatch:
        """Copy payloads out into a batch.

        Args:
            values: ``N`` payloads, each of which :meth:`problem` finds nothing wrong with.
            embeddings: ``[N, V, E]``, of these chunks.
            width: the ``C`` wanted, at least the length of the longest.
        """
        heads = [_HEAD.unpack_from(value) for value in values]
        lengths = [length for _, _, length in heads]
        payload = {}
        ats = [_HEAD.size] * len(values)
        even = all(length == width for length in lengths)
        for section in self.sections:
            shape = (len(values), *section.sized(width))
            if even or _TOKENS not in section.shape:
                column = torch.empty(shape, dtype=section.dtype)
            else:
                column = torch.full(shape, UNKNOWN_TOKEN if section.name == "token_ids" else 0, dtype=section.dtype)
            payload[section.name] = column
            _copy_out(section, column, values, ats, lengths, width)
        lengths_ = torch.tensor(lengths, dtype=torch.int64)
        if self.compression == "int8":
            keys, kept = decompress(payload, lengths_, self.shape.torch_dtype)
        else:
            keys, kept = payload["keys"], payload["values"]
        return ChunkBatch(
            embeddings=embeddings,
            keys=keys,
            values=kept,
            starts=torch.tensor([start for _, start, _ in heads], dtype=torch.int64),
            lengths=lengths_,
            token_ids=payload["token_ids"],
        )

    def problem(self, value: memoryview, *, checksum: bool) -> str:
        """Return what is wrong with a payload, or nothing.

        Args:
            value: the payload.
            checksum: whether to look at every byte, and not only at how many there are.
        """
        if len(value) < _HEAD.size or len(value) != self.size(_HEAD.unpack_from(value)[2]):
            return f"the payload has {len(value)} bytes, which is not what its length calls for"
        if checksum and _CHECKSUM.unpack_from(value)[0] != xxh3_64_intdigest(value[_CHECKSUM.size :]):
            return "the checksum of the payload does not match"
        return ""

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


def _as_bytes(tensor: Tensor) -> Tensor:
    """Return the same memory as uint8, the last dimension being wider."""
    if tensor.stride(-1) != 1:
        tensor = tensor.contiguous()
    return tensor.view(torch.uint8)


def _copy_out(
    section: Section,
    column: Tensor,
    values: Sequence[memoryview],
    ats: list[int],
    lengths: list[int],
    width: int,
) -> None:
    """Copy one section of each payload to its row of ``column``, and move ``ats`` behind it."""
    row_bytes = section.nbytes(width)
    if not row_bytes:
        return
    as_bytes = column.view(torch.uint8)
    flat = as_bytes.view(-1).numpy().data
    by_token = _TOKENS in section.shape
    for row, (value, at, length) in enumerate(zip(values, ats, lengths, strict=True)):
        if length == width or not by_token:
            wide = row_bytes
            flat[row * row_bytes : (row + 1) * row_bytes] = value[at : at + wide]
        else:
            wide = section.nbytes(length)
            dim = section.shape.index(_TOKENS)
            if dim == len(section.shape) - 1:
                length *= section.dtype.itemsize
            room = as_bytes[row].narrow(dim, 0, length)
            room.copy_(torch.frombuffer(bytearray(value[at : at + wide]), dtype=torch.uint8).view(room.shape))
        ats[row] = at + wide
