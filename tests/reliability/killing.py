"""Ends this process without warning: at a step that is counted, or at a point that is named."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from types import FrameType
from typing import Any, Final

_OURS: Final = ("memcore", "safetensors", "hnswlib")
"""Modules whose steps are counted begin so."""

POINTS: Final = (
    "memcore_lmdb.environment:Environment._check_alone",
    "memcore_lmdb.environment:Environment._make_room",
    "memcore_lmdb.environment:Environment._grow",
    "memcore_lmdb.environment:Environment._shut",
    "memcore_lmdb.environment:Environment._open",
    "memcore_lmdb.environment:_write_header",
    "memcore_lmdb.environment:sync",
    "memcore_lmdb.environment:remove_leftovers",
    "memcore_lmdb.overlay:_write_namespace",
    "memcore_lmdb.overlay:delete_contents",
    "memcore_lmdb.overlay:write_blocks",
    "memcore_lmdb.copying:_copy_values",
    "memcore_lmdb.copying:Namespace",
    "os:rename",
    "os:fsync",
    "os:truncate",
)
"""Where a write to an lmdb memory is between two states."""


def die() -> None:
    """End as a power cut would end this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_step(step: int) -> None:
    """End at a call or return of a function, also one of a library, that memcore's modules make or are."""
    left = step

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal left
        if frame.f_globals.get("__name__", "").startswith(_OURS):
            left -= 1
            if left <= 0:
                die()

    sys.setprofile(count)


def die_at(point: str, *, after: bool, time: int) -> None:
    """End before or after a call of a function, ``"module:name"``, the first, second, ..."""
    module, _, path = point.partition(":")
    owner: Any = importlib.import_module(module)
    *above, name = path.split(".")
    for each in above:
        owner = getattr(owner, each)
    real, left = getattr(owner, name), time

    def call(*arguments: Any, **keywords: Any) -> Any:
        nonlocal left
        left -= 1
        if not left and not after:
            die()
        result = real(*arguments, **keywords)
        if not left:
            die()
        return result

    setattr(owner, name, call)


def prepare(how: dict[str, Any]) -> None:
    """Do as one of the two functions says, if there is a ``step`` or a ``point``."""
    if "step" in how:
        die_at_step(how["step"])
    elif "point" in how:
        die_at(how["point"], after=how["after"], time=how["time"])
