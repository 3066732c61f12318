"""What memcore finds through the entry point: the backend's name, and how to import it when it is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memcore.hookspecs import Component, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence


def _load() -> type:
    from memcore_hnswlib.backend import HnswlibBackend

    return HnswlibBackend


@hookimpl
def memcore_backends() -> Sequence[Component]:
    """Offer the ``hnswlib`` backend."""
    return [
        Component(
            name="hnswlib",
            summary="approximate search in memory on the CPU, for many thousands of chunks (hnswlib)",
            load=_load,
            requires=("hnswlib",),
            install="memcore-llm[hnswlib]",
        )
    ]
