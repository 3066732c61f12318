"""An LMDB file read page by page, without LMDB.

LMDB trusts its file: on a page whose bytes have changed it may read beyond the map, or end the process. So before it
is let at a file, and when what is left of a damaged one is wanted, the pages are read here, where nothing is trusted.
The format is in :mod:`memcore_lmdb.page_format`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import attrs

from memcore.errors import CorruptedError
from memcore_lmdb.file_offsets import read_at
from memcore_lmdb.page_format import (
    BRANCH,
    HEADER,
    LARGE,
    LEAF,
    METAS,
    NO_PAGE,
    NODE,
    NUMBER,
    OVERFLOW,
    OVERFLOW_HEADER,
    VERSION,
    Meta,
    Place,
    Tree,
    problems_of_metas,
    read_metas,
)

_DEEPEST: Final = 32

_LONGEST_KEY: Final = 511
"""Bytes: longer ones LMDB does not take."""


@attrs.frozen
class _Span:
    """The keys that a page may have: not below ``low``, and below ``high``; of the tree of free pages or the other."""

    free: bool
    low: bytes | None = None
    high: bytes | None = None

    def holds(self, key: bytes) -> bool:
        order = _order(key, self.free)
        return (self.low is None or order >= _order(self.low, self.free)) and (
            self.high is None or order < _order(self.high, self.free)
        )


class Snapshot:
    """A file as one transaction has left it. Close it, or use it as a context, in one thread.

    Attributes:
        meta: of the transaction.
        problems: what was found to be wrong so far, in words, with the number of the page.

    Args:
        path: of the file.
        transaction: which; None for the newest of which entries can be found.

    Raises:
        CorruptedError: it is no such file, or both metas are damaged.
        LookupError: there is no such transaction, any more.
        OSError: it cannot be read.
    """

    meta: Meta
    problems: list[str]
    _used: bytearray
    _free: bytearray
    _free_is_whole: bool
    _doubtful: list[tuple[int, int]]  # free pages that the tree leads to, and levels from there on
    _of_values: int  # pages that large values were said to have so far

    def __init__(self, path: Path, transaction: int | None = None) -> None:
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            self.size = os.fstat(self._file).st_size
            metas = sorted(read_metas(self._file, self.size), key=lambda meta: -meta.transaction)
            if not metas:
                raise CorruptedError(f"{path} is no LMDB file of format {VERSION}, or its first two pages are damaged")
            self._of_metas = problems_of_metas(metas)
            if transaction is not None:
                metas = [meta for meta in metas if meta.transaction == transaction]
                if not metas:
                    raise LookupError(f"{path} has no transaction {transaction}")
            for meta in metas:
                self._begin(meta)
                if transaction is not None or next(self.entries(), None) is not None:
                    break
            else:
                meta = metas[0]
            if meta is not metas[0]:
                self._of_metas.append("nothing can be read of what was committed last")
            self._begin(meta)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def check(self) -> list[str]:
        """Read both trees and return what is wrong with them, in words: all that LMDB relies on but values."""
        for _ in self.entries():
            pass
        return self.problems

    def entries(self) -> Iterator[tuple[bytes, Place]]:
        """Yield the keys, as they should be in ascending order, and where their values are, as far as can be read."""
        self._read_free()
        yield from self._walk(self.meta.main)

    def lost_entries(self) -> Iterator[tuple[bytes, Place]]:
        """Yield what is not among :meth:`entries`, after those, because of a damaged page on the way there.

        First those on pages that are neither free nor known otherwise; then those of free pages that the tree leads
        to, which may be long out of date.
        """
        if self._free_is_whole:  # or what was deleted long ago could not be told from what is lost
            for number in range(METAS, self.meta.last_page + 1):
                if not self._used[number] and not self._free[number]:
                    page = self._page(number)
                    if len(page) == self.meta.page_size and HEADER.unpack_from(page)[:3:2] == (number, LEAF):
                        self._used[number] = 1
                        yield from self._leaf(number, page)
        doubtful = list(self._doubtful)
        self._free = bytearray(len(self._free))
        for number, levels in doubtful:
            yield from self._below(number, levels, _Span(False))

    def value(self, place: Place) -> bytes:
        """Return the bytes of a value, fewer if the file ends before."""
        return read_at(self._file, place.size, place.at)

    def problem(self, place: Place) -> str:
        """Return what is wrong with the page before a value that has pages of its own, or nothing."""
        if not place.pages:
            return ""
        number = place.at // self.meta.page_size
        raw = read_at(self._file, OVERFLOW_HEADER.size, number * self.meta.page_size)
        if len(raw) < OVERFLOW_HEADER.size:
            return f"page {number} is missing"
        own, _, flags, pages = OVERFLOW_HEADER.unpack(raw)
        if (own, flags, pages) != (number, OVERFLOW, place.pages):
            return f"page {number} does not begin as it should"
        return ""

    def _begin(self, meta: Meta) -> None:
        self.meta = meta
        self.problems = list(self._of_metas)
        if meta.missing:
            self.problems.append(f"{meta.missing} pages are missing at the end")
        pages = max(meta.last_page + 1, self.size // meta.page_size)
        self._used = bytearray(pages)
        self._free = bytearray(pages)
        self._free_is_whole = False
        self._doubtful = []
        self._of_values = 0

    def _page(self, number: int) -> bytes:
        size = self.meta.page_size
        return read_at(self._file, size, number * size)

    def _say(self, number: int, problem: str) -> None:
        self.problems.append(f"page {number} {problem}")

    def _exists(self, number: int, pages: int = 1) -> bool:
        if not METAS <= number <= self.meta.last_page + 1 - pages:
            self._say(number, "is named and beyond the end")
        # What ends too early may be no more than the number of the last page.
        return METAS <= number <= len(self._used) - pages

    def _use(self, number: int, pages: int = 1) -> bool:
        """Take note that pages are in use; return whether they are neither in use already nor free."""
        end = number + pages
        alone = not any(self._used[number:end]) and not any(self._free[number:end])
        if not alone:
            self._say(number, "is named twice")
        self._used[number:end] = b"\1" * pages
        return alone

    def _are_believable(self, number: int, pages: int) -> bool:
        """Return whether large values may have so many pages more: where all overlap, to read them would never end."""
        self._of_values += pages
        if self._of_values > 2 * len(self._used):
            self._say(number, "has values that other values have the pages of")
            return False
        return True

    def _walk(self, tree: Tree, *, free: bool = False) -> Iterator[tuple[bytes, Place]]:
        """Yield all entries of a tree, and see that they are in order and as many as they should be."""
        count, before = 0, b""
        if tree.root != NO_PAGE:
            for key, place in self._below(tree.root, tree.depth, _Span(free)):
                if count and _order(key, free) <= before:
                    self._say(place.at // self.meta.page_size, f"has the key {key.hex()} out of order")
                before = _order(key, free)
                count += 1
                yield key, place
        if count != tree.entries:
            self.problems.append(f"there are {count} entries{' of free pages' * free} instead of {tree.entries}")

    def _below(self, number: int, levels: int, span: _Span) -> Iterator[tuple[bytes, Place]]:
        if not self._exists(number):
            return
        if self._free[number]:
            self._say(number, "is in use and free")
            self._doubtful.append((number, levels))
            return
        if not self._use(number):
            return
        page = self._page(number)
        if len(page) < self.meta.page_size:
            self._say(number, "is missing")
            return
        own, _, flags, _, _ = HEADER.unpack_from(page)
        if own != number or flags != (LEAF if levels == 1 else BRANCH):
            self._say(number, "does not begin as it should")
        if flags not in (LEAF, BRANCH):
            flags = LEAF if levels == 1 else BRANCH
        if flags == LEAF:
            for key, place in self._leaf(number, page):
                if not span.holds(key):
                    self._say(number, f"has the key {key.hex()}, which is looked for elsewhere")
                yield key, place
        elif levels > _DEEPEST or levels < 2:
            self._say(number, "is deeper than the tree")
        else:
            yield from self._children(number, page, levels, span)

    def _children(self, number: int, page: bytes, levels: int, span: _Span) -> Iterator[tuple[bytes, Place]]:
        nodes = list(self._nodes(number, page))
        keys = [page[at + NODE.size : at + NODE.size + key_size] for at, *_, key_size in nodes]
        for place, (_, low, high, highest, _) in enumerate(nodes):
            below = attrs.evolve(
                span,
                low=keys[place] if place else span.low,  # the first key is never looked at
                high=keys[place + 1] if place + 1 < len(keys) else span.high,
            )
            yield from self._below(low | high << 16 | highest << 32, levels - 1, below)

    def _leaf(self, number: int, page: bytes) -> Iterator[tuple[bytes, Place]]:
        size = self.meta.page_size
        for at, low, high, flags, key_size in self._nodes(number, page):
            length = low | high << 16
            data = at + NODE.size + key_size
            if flags == 0 and data + length <= size:
                yield page[at + NODE.size : data], Place(number * size + data, length)
            elif flags == LARGE and data + NUMBER.size <= size:
                (first,) = NUMBER.unpack_from(page, data)
                pages = (HEADER.size + length - 1) // size + 1
                if self._exists(first, pages) and self._are_believable(number, pages):
                    self._use(first, pages)
                    yield page[at + NODE.size : data], Place(first * size + HEADER.size, length, pages)
            else:
                self._say(number, f"has a damaged entry at byte {at}")

    def _nodes(self, number: int, page: bytes) -> Iterator[tuple[int, int, int, int, int]]:
        """Yield where each node of a page begins, and the four numbers that it begins with."""
        size = self.meta.page_size
        lower, upper = HEADER.unpack_from(page)[3:]
        if HEADER.size <= lower <= upper <= size and lower % 2 == 0:
            places = struct.unpack_from(f"<{(lower - HEADER.size) // 2}H", page, HEADER.size)
        else:
            self._say(number, "does not begin as it should")
            places = self._guessed_places(page)
            lower = upper = HEADER.size + 2 * len(places)
        room = size
        for at in places:
            if not upper <= at <= size - NODE.size:
                self._say(number, f"has an entry at byte {at}")
                continue
            node = NODE.unpack_from(page, at)
            room -= NODE.size + node[3]
            if at + NODE.size + node[3] > size or node[3] > _LONGEST_KEY or room < 0:
                self._say(number, f"has a damaged entry at byte {at}")
                continue
            yield at, *node

    def _guessed_places(self, page: bytes) -> tuple[int, ...]:
        """Return where nodes begin, as far as their list goes on sensibly, up to the first node."""
        places: list[int] = []
        lowest = len(page)
        while HEADER.size + 2 * len(places) + 2 <= lowest:
            (at,) = struct.unpack_from("<H", page, HEADER.size + 2 * len(places))
            if not HEADER.size < at <= len(page) - NODE.size:
                break
            places.append(at)
            lowest = min(lowest, at)
        return tuple(places)

    def _read_free(self) -> None:
        """Read which pages are free, and see whether anything is wrong with that."""
        before = len(self.problems)
        free = bytearray(len(self._free))
        for key, place in self._walk(self.meta.free, free=True):
            raw = self.value(place)
            numbers = struct.unpack_from(f"<{len(raw) // 8}Q", raw)
            page = place.at // self.meta.page_size
            if problem := self.problem(place):
                self.problems.append(problem)
            if len(key) != NUMBER.size or len(raw) % 8 or not numbers or numbers[0] != len(numbers) - 1:
                self._say(page, "has a damaged list of free pages")
                continue
            for number in numbers[1:]:
                if self._exists(number):
                    if free[number] or self._used[number]:
                        self._say(number, "is named twice")
                    free[number] = 1
        self._free = free
        self._free_is_whole = len(self.problems) == before


def _order(key: bytes, free: bool) -> bytes:
    """Return what keys are in the order of: those of free pages are little-endian numbers."""
    return key[::-1] if free else key
