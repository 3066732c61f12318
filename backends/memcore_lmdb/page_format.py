"""How LMDB lays out a file: what its pages, and the two that come first, begin with.

The format is that of LMDB 0.9 on 64-bit, little-endian machines: pages of a fixed size, of which the first two are
*metas* and hold the roots of two trees, that of free pages and that of entries. A transaction writes new pages and then
the older of the two metas.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import attrs

from memcore_lmdb.file_offsets import read_at

METAS: Final = 2
_MAGIC: Final = 0xBEEFC0DE
VERSION: Final = 1

BRANCH: Final = 1
LEAF: Final = 2
OVERFLOW: Final = 4

LARGE: Final = 1
"""Flag of a node whose value has pages of its own."""

NO_PAGE: Final = (1 << 64) - 1

_META: Final = struct.Struct("<16x I I 8x Q")
_TREE: Final = struct.Struct("<I H H 24x Q Q")
_AFTER_TREES: Final = struct.Struct("<Q Q")
HEADER: Final = struct.Struct("<Q H H H H")
OVERFLOW_HEADER: Final = struct.Struct("<Q H H I")
NODE: Final = struct.Struct("<H H H H")
NUMBER: Final = struct.Struct("<Q")


@attrs.frozen(kw_only=True)
class Tree:
    """Where a tree begins.

    Attributes:
        root: number of its first page.
        depth: levels of pages.
        entries: that it should have.
    """

    root: int
    depth: int
    entries: int


@attrs.frozen(kw_only=True)
class Meta:
    """What one of the two metas says.

    Attributes:
        number: of its page.
        page_size: bytes.
        free: the tree of free pages.
        main: the tree of entries.
        last_page: the highest number in use, or that of the last page in the file if that is lower.
        missing: pages that should come after that.
        transaction: which wrote it.
        map_bytes: of address space that the file was mapped to.
    """

    number: int
    page_size: int
    free: Tree
    main: Tree
    last_page: int
    missing: int
    transaction: int
    map_bytes: int


@attrs.frozen
class Place:
    """Where a value lies.

    Attributes:
        at: place of its first byte in the file.
        size: bytes.
        pages: of its own, if it has any; a header of 16 bytes comes before it then.
    """

    at: int
    size: int
    pages: int = 0


def read_metas(file: int, size: int) -> Iterator[Meta]:
    """Yield what the metas of a file say, of those that can be made sense of.

    Args:
        file: open for reading; it is moved about in.
        size: its bytes.
    """
    # How large pages are is said by each of them, and where the second lies depends on it.
    sizes = {1 << power for power in range(8, 17)}
    places = [0, *sorted(sizes)]
    while places:
        at = places.pop(0)
        first = at == 0
        raw = read_at(file, 256, at)
        if len(raw) < _META.size + 2 * _TREE.size + _AFTER_TREES.size:
            continue
        magic, version, map_bytes = _META.unpack_from(raw)
        if (magic, version) != (_MAGIC, VERSION):
            continue
        page_size, _, *free = _TREE.unpack_from(raw, _META.size)
        pad, flags, *main = _TREE.unpack_from(raw, _META.size + _TREE.size)
        last_page, transaction = _AFTER_TREES.unpack_from(raw, _META.size + 2 * _TREE.size)
        if page_size not in sizes or (not first and at != page_size) or pad or flags:
            continue
        places = [page_size] if first else []  # there is one of them yet, or none
        there = max(1, min(last_page, size // page_size - 1))
        yield Meta(
            number=int(not first),
            page_size=page_size,
            free=Tree(depth=free[0], entries=free[1], root=free[2]),
            main=Tree(depth=main[0], entries=main[1], root=main[2]),
            last_page=there,
            missing=max(0, last_page - there),
            transaction=transaction,
            map_bytes=map_bytes,
        )


def problems_of_metas(metas: list[Meta]) -> list[str]:
    """Return what is wrong with the metas, newest first: transactions take turns with them."""
    if len(metas) < METAS:
        return [f"page {1 - metas[0].number} is damaged, and with it perhaps what was committed last"]
    new, old = (meta.transaction for meta in metas)
    if new - old > 1 or (new and (new % 2 != metas[0].number or old == new)):
        return ["pages 0 and 1 do not say which commit was the last"]
    return []
