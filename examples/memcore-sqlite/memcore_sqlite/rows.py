"""Chunks as rows of a table and back: tensors become bytes, with a checksum."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Self

import attrs
import torch
from torch import Tensor

from memcore import ChunkBatch, ChunkShapeError
from memcore.chunk import UNKNOWN_TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@attrs.frozen
class Layout:
    """What all chunks of a namespace have in common: the sizes of a :class:`memcore.ChunkBatch`, and the dtype."""

    V: int
    E: int
    H: int
    D: int
    Dv: int
    dtype: str

    @classmethod
    def of(cls, chunks: ChunkBatch) -> Self:
        """Return the layout of a batch."""
        _, vectors, size = chunks.embeddings.shape
        _, heads, _, key_size = chunks.keys.shape
        dtype = str(chunks.keys.dtype).removeprefix("torch.")
        return cls(vectors, size, heads, key_size, chunks.values.shape[3], dtype)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what ``to_json`` wrote."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """Write it as text."""
        return json.dumps(attrs.asdict(self))

    def check(self, chunks: ChunkBatch) -> None:
        """Raise ChunkShapeError unless the chunks have this layout."""
        given = Layout.of(chunks)
        if given != self:
            raise ChunkShapeError(f"chunks of {given} do not fit the namespace, which holds {self}")


@attrs.frozen
class Row:
    """One chunk as the table holds it; the fields are named like the columns."""

    start: int
    length: int
    embeddings: bytes  # [V, E] float32
    token_ids: bytes  # [L] int64
    key_bytes: bytes  # [H, L, D]
    value_bytes: bytes  # [H, L, Dv]

    @property
    def checksum(self) -> int:
        """CRC-32 of everything else."""
        numbers = f"{self.start},{self.length}".encode()
        return zlib.crc32(b"".join((numbers, self.embeddings, self.token_ids, self.key_bytes, self.value_bytes)))


def to_rows(chunks: ChunkBatch) -> Iterator[Row]:
    """Turn a batch into rows, without its padding."""
    for place, length in enumerate(chunks.lengths.tolist()):
        yield Row(
            start=int(chunks.starts[place]),
            length=length,
            embeddings=_to_bytes(chunks.embeddings[place]),
            token_ids=_to_bytes(chunks.token_ids[place, :length]),
            key_bytes=_to_bytes(chunks.keys[place, :, :length]),
            value_bytes=_to_bytes(chunks.values[place, :, :length]),
        )


def to_batch(rows: Sequence[Row], layout: Layout) -> ChunkBatch:
    """Turn ``N`` rows of one layout into a batch, padded to the longest."""
    width = max((row.length for row in rows), default=1)
    dtype: torch.dtype = getattr(torch, layout.dtype)
    # Tensors made in inference mode could never be trained with.
    with torch.inference_mode(False):
        keys = torch.zeros(len(rows), layout.H, width, layout.D, dtype=dtype)
        values = torch.zeros(len(rows), layout.H, width, layout.Dv, dtype=dtype)
        token_ids = torch.full((len(rows), width), UNKNOWN_TOKEN)
        for place, row in enumerate(rows):
            end = row.length
            keys[place, :, :end] = _to_tensor(row.key_bytes, dtype).view(layout.H, end, layout.D)
            values[place, :, :end] = _to_tensor(row.value_bytes, dtype).view(layout.H, end, layout.Dv)
            token_ids[place, :end] = _to_tensor(row.token_ids, torch.int64)
        return ChunkBatch(
            embeddings=to_vectors([row.embeddings for row in rows], layout),
            keys=keys,
            values=values,
            starts=torch.tensor([row.start for row in rows], dtype=torch.int64),
            lengths=torch.tensor([row.length for row in rows], dtype=torch.int64),
            token_ids=token_ids,
        )


def to_vectors(blobs: Sequence[bytes], layout: Layout) -> Tensor:
    """Turn the embeddings of ``N`` rows into ``[N, V, E]`` float32."""
    return _to_tensor(b"".join(blobs), torch.float32).view(len(blobs), layout.V, layout.E)


def _to_bytes(tensor: Tensor) -> bytes:
    # numpy has no bfloat16, so the bits travel as bytes. contiguous() would leave odd strides in dimensions of size 1.
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format).view(torch.uint8).numpy().tobytes()


def _to_tensor(data: bytes, dtype: torch.dtype) -> Tensor:
    # The copy in a bytearray is what may be written to; torch cannot make a tensor from no bytes.
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
