"""Everything that a backend holds, to compare what it was and what it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from memcore.backend import PersistentBackend
from memcore.testing.chunks import assert_same_chunks, select

if TYPE_CHECKING:
    from collections.abc import Mapping

    from memcore.backend import MemoryBackend
    from memcore.chunk import ChunkBatch


@attrs.frozen(eq=False, kw_only=True)
class Contents:
    """What a backend holds.

    Attributes:
        chunks: by namespace and id, each a batch of one. Namespaces without chunks are left out.
        records: by name; empty if the backend keeps none.
    """

    chunks: Mapping[str, Mapping[int, ChunkBatch]]
    records: Mapping[str, bytes]


def contents_of(backend: MemoryBackend) -> Contents:
    """Read everything from a backend, through its own methods."""
    chunks = {}
    for name in backend.namespaces():
        ids = backend.ids(name)
        if ids.numel():
            fetched = backend.fetch(name, ids)
            chunks[name] = {id: select(fetched, slice(row, row + 1)) for row, id in enumerate(ids.tolist())}
    records: dict[str, bytes] = {}
    if isinstance(backend, PersistentBackend):
        for name in backend.record_names():
            value = backend.read_record(name)
            assert value is not None, f"record {name!r} is listed and cannot be read"
            records[name] = value
    return Contents(chunks=chunks, records=records)


def assert_same_contents(got: Contents, want: Contents) -> None:
    """Check that two contents are the same, bit for bit."""
    assert {name: list(held) for name, held in got.chunks.items()} == {
        name: list(held) for name, held in want.chunks.items()
    }
    assert got.records == want.records
    for name, held in want.chunks.items():
        for id, chunk in held.items():
            assert_same_chunks(got.chunks[name][id], chunk)
