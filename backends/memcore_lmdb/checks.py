"""Which checksums are still to be compared."""

from __future__ import annotations

from typing import Literal


class Checks:
    """Remembers which chunks this instance has already read and found whole.

    Args:
        mode: ``"first"``, ``"always"`` or ``"never"``, as in :class:`memcore_lmdb.options.LmdbOptions`.
    """

    def __init__(self, mode: Literal["first", "always", "never"]) -> None:
        self.mode = mode
        self._seen: dict[int, set[int]] = {}

    def due(self, number: int, ids: list[int]) -> set[int]:
        """Return which of the committed chunks ``ids`` of the namespace with this number are to be checked."""
        if self.mode == "never":
            return set()
        seen = self._seen.get(number)
        if self.mode == "always" or seen is None:
            return set(ids)
        return set() if seen.issuperset(ids) else set(ids) - seen

    def block_due(self, checked: bool) -> bool:
        """Return whether a block is to be checked which was, or was not, checked before."""
        return self.mode == "always" or (self.mode == "first" and not checked)

    def passed(self, number: int, ids: set[int]) -> None:
        """Take note that these chunks are whole."""
        if self.mode == "first" and ids:
            self._seen.setdefault(number, set()).update(ids)

    def forget(self, number: int) -> None:
        """Forget about a namespace that was dropped."""
        self._seen.pop(number, None)
