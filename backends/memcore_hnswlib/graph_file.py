"""Looking through a file of hnswlib's before hnswlib does: it trusts what it reads, and follows links to anywhere.

The file is that of hnswlib 0.8 on a 64-bit, little-endian machine: a head; for every vector the links to its neighbours
on the ground, the vector and its label; then for every vector the links on the levels above, if it has any.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from memcore.errors import CorruptedError

if TYPE_CHECKING:
    from pathlib import Path

    from memcore_hnswlib.options import HnswlibOptions

_HEAD: Final = struct.Struct("<6Q i I 3Q d Q")
_COUNT: Final = struct.Struct("<I")
_LINK: Final = 4
_LABEL: Final = 8
_ROWS: Final = 1 << 16
"""Vectors looked at a time."""


@attrs.frozen
class _Head:
    offset: int
    room: int
    count: int
    row_bytes: int
    label_offset: int
    vector_offset: int
    top: int
    entry: int
    most: int
    most_on_ground: int
    links: int
    multiplier: float
    ef_construction: int


def check_graph(path: Path, options: HnswlibOptions, *, size: int, count: int, dead: int) -> None:
    """See that all that hnswlib will follow leads to where it should.

    Args:
        path: of the file.
        options: that the graph was built with.
        size: ``E`` of its vectors.
        count: vectors in it, with the dead ones.
        dead: vectors that are marked as deleted.

    Raises:
        CorruptedError: it does not.
    """
    raw: Any = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size >= _HEAD.size else b""
    if len(raw) < _HEAD.size:
        raise CorruptedError(f"{path} is no graph: it has {len(raw)} bytes")
    head = _Head(*_HEAD.unpack_from(raw))
    _check_head(path, head, options, size, count)
    end = _HEAD.size + count * head.row_bytes
    if end > len(raw):
        raise CorruptedError(f"{path} ends before its last vector")
    levels, above = _levels(path, raw, end, head)
    ground = raw[_HEAD.size : end].reshape(count, head.row_bytes)
    deleted = 0
    for at in range(0, count, _ROWS):
        rows = ground[at : at + _ROWS]
        deleted += int((rows[:, 2] & 1).sum())
        _check_links(path, rows[:, : head.vector_offset], head.most_on_ground, levels, 0)
    if deleted != dead:
        raise CorruptedError(f"{path} has {deleted} vectors that are deleted, instead of {dead}")
    for level, lists in above.items():
        _check_links(path, np.stack(lists), head.most, levels, level)


def _check_head(path: Path, head: _Head, options: HnswlibOptions, size: int, count: int) -> None:
    on_ground = _COUNT.size + 2 * options.M * _LINK
    wanted = {
        "offset": 0,
        "count": count,
        "row_bytes": on_ground + 4 * size + _LABEL,
        "label_offset": on_ground + 4 * size,
        "vector_offset": on_ground,
        "most": options.M,
        "most_on_ground": 2 * options.M,
        "links": options.M,
        "ef_construction": max(options.ef_construction, options.M),
    }
    wrong = [
        f"{name} {getattr(head, name)} instead of {right}"
        for name, right in wanted.items()
        if getattr(head, name) != right
    ]
    if not head.count <= head.room <= 2 * head.count:  # which is reserved at once
        wrong.append(f"room for {head.room} vectors with {head.count} in it")
    if not math.isclose(head.multiplier, 1 / math.log(options.M)):  # the levels of new vectors depend on it
        wrong.append(f"multiplier {head.multiplier}")
    if wrong:
        raise CorruptedError(f"{path} is no graph that this memory has built: it has {', '.join(wrong)}")


def _levels(path: Path, raw: Any, at: int, head: _Head) -> tuple[Any, dict[int, list[Any]]]:
    """Return the level of each vector, and the lists of links of each level above the ground."""
    list_bytes = _COUNT.size + head.most * _LINK
    levels = np.zeros(head.count, dtype=np.int64)
    above: dict[int, list[Any]] = {}
    for vector in range(head.count):
        length = _COUNT.unpack_from(raw, at)[0] if at + _COUNT.size <= len(raw) else -1
        at += _COUNT.size
        if length < 0 or length % list_bytes or at + length > len(raw):
            raise CorruptedError(f"{path} is damaged: vector {vector} has {length} bytes of links above the ground")
        levels[vector] = length // list_bytes
        for level in range(1, length // list_bytes + 1):
            above.setdefault(level, []).append(raw[at : at + list_bytes])
            at += list_bytes
    if at != len(raw):
        raise CorruptedError(f"{path} goes on after its end")
    top = int(levels.max(initial=0))
    if head.count and (head.top != top or head.entry >= head.count or levels[head.entry] != top):
        raise CorruptedError(f"{path} begins at vector {head.entry} on level {head.top}, and the highest is {top}")
    return levels, above


def _check_links(path: Path, lists: Any, most: int, levels: Any, level: int) -> None:
    """See that lists, ``[n, bytes]``, lead to vectors that are there, and on this level."""
    lists = np.ascontiguousarray(lists)
    counts = lists[:, :2].copy().view("<u2")[:, 0]
    if counts.max(initial=0) > most:
        raise CorruptedError(f"{path} has a vector with {counts.max()} links, and {most} are allowed")
    links = lists[:, _COUNT.size :].copy().view("<u4")
    used = links[np.arange(most) < counts[:, None]]
    if len(used) and (used.max() >= len(levels) or levels[used].min() < level):
        raise CorruptedError(f"{path} has links on level {level} to vectors that are not there")
