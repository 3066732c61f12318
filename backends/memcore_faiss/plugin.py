"""What memcore finds through the entry point: the backend's name, and how to import it when it is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memcore.hookspecs import Component, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence


def _load() -> type:
    from memcore_faiss.backend import FaissBackend

    return FaissBackend


@hookimpl
def memcore_backends() -> Sequence[Component]:
    """Offer the ``faiss`` backend."""
    return [
        Component(
            name="faiss",
            summary="flat, inverted-file and graph indexes in memory, on CPU or GPU (faiss)",
            load=_load,
            requires=("faiss",),
            install="memcore-llm[faiss-cpu]",
        )
    ]
