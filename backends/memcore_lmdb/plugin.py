"""What memcore finds through the entry point: the backend's name, and how to import it when it is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memcore.hookspecs import Component, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence


def _load() -> type:
    from memcore_lmdb.backend import LmdbBackend

    return LmdbBackend


@hookimpl
def memcore_backends() -> Sequence[Component]:
    """Offer the ``lmdb`` backend."""
    return [
        Component(
            name="lmdb",
            summary="on disk, in one file that many processes can read (LMDB)",
            load=_load,
            requires=("lmdb", "xxhash", "filelock"),
            install="memcore-llm[lmdb]",
        )
    ]
