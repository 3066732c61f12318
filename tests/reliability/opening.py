"""Every backend that is installed, its index in use however few chunks there are."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Final

from memcore.backend import MemoryBackend
from memcore.bank import MemoryBank
from memcore.eviction_policies import FifoEviction
from memcore.options import structure_options
from memcore.plugins import registry

_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "exact": {},
    "faiss": {"device": "cpu", "exact_below": 0},
    "hnswlib": {"exact_below": 0},
    "lmdb": {"sync": False},
}

INSTALLED: Final = [name for name in _OPTIONS if name == "exact" or importlib.util.find_spec(name)]
"""Names of the backends to test with."""


def options_of(name: str, path: Path) -> dict[str, Any]:
    """Return options for a backend that may keep files in this folder."""
    return {**_OPTIONS[name], **({"path": str(path)} if name == "lmdb" else {})}


def open_backend(name: str, path: Path, **changes: Any) -> MemoryBackend:
    """Open a backend that may keep files in this folder."""
    backend = registry().load_component("backends", name)
    return backend(structure_options(backend.Options, {**options_of(name, path), **changes}))


def open_bank(name: str, path: Path, capacity: int | None = None, **changes: Any) -> MemoryBank:
    """Open a bank on a backend that may keep files in this folder."""
    return MemoryBank(open_backend(name, path, **changes), FifoEviction(), capacity=capacity)
