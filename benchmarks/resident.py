"""Resident memory of this process, told apart by what stands behind it."""

from __future__ import annotations

import contextlib
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True)  # and not of attrs, which peers' environments may lack
class Resident:
    """Resident memory, in bytes.

    Attributes:
        anonymous: what the process itself holds; all of it where the system does not tell apart.
        mapped: pages of files that are mapped, such as an LMDB memory: page cache, which the system takes back when
            others need it.
    """

    anonymous: int
    mapped: int

    @classmethod
    def now(cls) -> Resident:
        """Return what is resident now."""
        found = _status("RssAnon", "RssFile")
        if found is None:
            return cls(anonymous=int(psutil.Process().memory_info().rss), mapped=0)
        return cls(anonymous=found[0], mapped=found[1])

    def above(self, level: Resident) -> Resident:
        """Return what has come on top of a level."""
        return Resident(anonymous=max(0, self.anonymous - level.anonymous), mapped=max(0, self.mapped - level.mapped))

    def most(self, other: Resident) -> Resident:
        """Return the larger of each."""
        return Resident(anonymous=max(self.anonymous, other.anonymous), mapped=max(self.mapped, other.mapped))


def forget_peak() -> None:
    """Have :func:`peak` begin anew, where the system can: a model takes more while it is loaded than afterwards."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Return the most that was resident, in bytes: ever, or since :func:`forget_peak`.

    On Linux this is ``VmHWM``: ``ru_maxrss`` of a child process begins at the peak of the process that started it.
    """
    found = _status("VmHWM")
    if found is not None:
        return found[0]
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _status(*names: str) -> list[int] | None:
    """Return fields of ``/proc/self/status`` in bytes, or None where there are none."""
    try:
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return [int(lines[name].split()[0]) * 1024 for name in names]
    except (OSError, KeyError, ValueError):
        return None
