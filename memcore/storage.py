"""What a memory on disk is made of, in bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

import attrs

FREE: Final = "free"
"""Name of the part that compaction gives back to the file system."""


@attrs.frozen(kw_only=True)
class NamespaceStorage:
    """How a namespace is kept.

    Attributes:
        chunks: that it holds.
        tokens: of all of them together; None if the backend would have to read them to know.
        dtype: of keys and values, as torch calls it, e.g. ``"bfloat16"``.
        compression: how keys and values are kept, see :mod:`memcore.compression`; None if the backend does not tell.
        parts: bytes, by what they are.
    """

    chunks: int
    tokens: int | None = None
    dtype: str
    compression: str | None = None
    parts: Mapping[str, int]


@attrs.frozen(kw_only=True)
class Storage:
    """How a persistent backend uses the disk, as of the last commit.

    Attributes:
        namespaces: by name.
        parts: bytes that belong to no namespace, by what they are; under ``"free"`` what compaction would give back.
        map_bytes: bytes up to which the file can grow before more address space is mapped; None without such a map.
        processes: others that have it open, to read or to write, as far as this one can see; None if the backend does
            not know.
    """

    namespaces: Mapping[str, NamespaceStorage]
    parts: Mapping[str, int]
    map_bytes: int | None = None
    processes: int | None = None

    @property
    def all_parts(self) -> dict[str, int]:
        """The bytes of everything, by what they are."""
        return sum_of_parts([*(each.parts for each in self.namespaces.values()), self.parts])

    @property
    def fragmentation(self) -> float:
        """The share of the bytes on disk that are free, from 0 to 1."""
        parts = self.all_parts
        return parts.get(FREE, 0) / max(1, sum(parts.values()))


def sum_of_parts(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add up bytes by what they are, in the order in which parts are first named."""
    total: Counter[str] = Counter()
    for each in parts:
        total.update(each)
    return dict(total)
