"""What chunks take in a file and in memory, told before there are any."""

from __future__ import annotations

from typing import Final

from memcore.chunk import ChunkBatch
from memcore.footprint import Footprint
from memcore_lmdb.blocks import BLOCK_BYTES
from memcore_lmdb.format import ChunkShape
from memcore_lmdb.options import LmdbOptions
from memcore_lmdb.page_format import NODE, OVERFLOW_HEADER
from memcore_lmdb.payload import PayloadLayout

_PAGE: Final = 4096

_KEY: Final = 17

_LARGEST_NODE: Final = (_PAGE - OVERFLOW_HEADER.size) // 2 - 2
"""Bytes of a node, above which LMDB gives its value pages of its own."""

_ENTRY: Final = 32
"""Bytes of a chunk in the list of its block, in the file and in memory."""


def footprint(options: LmdbOptions, like: ChunkBatch, chunks: int, namespaces: int) -> Footprint:
    """Return what chunks take: see :meth:`memcore.backend.MemoryBackend.footprint`.

    The file is taken to be as after ``compact()``. One that is written to has free pages beside: those of vectors, that
    blocks were joined from, and what the last commits replaced.
    """
    shape, tokens = ChunkShape.of(like), like.token_ids.shape[1]
    layout = PayloadLayout(shape, options.compression)
    count = chunks * namespaces
    vectors = count * shape.vector_bytes
    payload = layout.nbytes(count, count * tokens) - vectors
    per_block = max(1, min(chunks, BLOCK_BYTES // shape.vector_bytes))
    blocks = -(-chunks // per_block) if chunks else 0
    disk = namespaces * (
        _bytes_of_values(layout.size(tokens), chunks)
        + _bytes_of_values(per_block * shape.vector_bytes, blocks)
        + _bytes_of_values(16 + per_block * _ENTRY, blocks)
    )
    held = vectors if vectors <= options.hold_vectors and options.verify != "always" else 0
    waiting = min(options.write_buffer, payload + vectors)
    return Footprint(
        payload=payload,
        vectors=vectors,
        index=max(0, disk - payload - vectors),
        ram=count * _ENTRY + held + waiting,
        disk=disk,
    )


def _bytes_of_values(size: int, count: int) -> int:
    """Return the bytes of the pages of ``count`` values of this size, and of the nodes that lead to them."""
    node = NODE.size + _KEY + size
    if node > _LARGEST_NODE:
        pages = -(-(OVERFLOW_HEADER.size + size) // _PAGE)
        return count * (pages * _PAGE + NODE.size + _KEY + 8 + 2)
    per_page = (_PAGE - OVERFLOW_HEADER.size) // (node + node % 2 + 2)
    return -(-count // per_page) * _PAGE
