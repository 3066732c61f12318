"""All targets by name."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from fuzz.target import Target

_NEEDS: Final = {
    "configurations": "yaml",
    "entries": "lmdb",
    "graphs": "hnswlib",
    "memories": "lmdb",
    "pages": "lmdb",
    "records": "safetensors",
    "requests": "starlette",
    "texts": "safetensors",
}
"""What must be installed for each."""

TARGETS: Final = [name for name, package in _NEEDS.items() if find_spec(package)]


def target(name: str, folder: Path) -> Target:
    """Make a target, which keeps its files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    made: Target = getattr(importlib.import_module(f"fuzz.{name}"), name.capitalize())(folder)
    return made
