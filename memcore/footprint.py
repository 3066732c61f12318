"""What chunks take in a backend, in bytes: told before any are stored."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Footprint:
    """Bytes that chunks take: the first three say for what, the others where.

    What lies where may be more than the first three together (a file has whole pages, a buffer is held beside it), or
    less (what is in the page cache of the system need not be there).

    Attributes:
        payload: keys and values, and what is kept of each token and chunk beside them.
        vectors: what chunks are found by.
        index: what finding them takes on top.
        ram: bytes in the memory of the process.
        gpu: bytes on a GPU.
        disk: bytes in files.
    """

    payload: int
    vectors: int
    index: int
    ram: int = 0
    gpu: int = 0
    disk: int = 0

    @property
    def total(self) -> int:
        """Bytes of all that is held for the chunks, wherever it is."""
        return self.payload + self.vectors + self.index
