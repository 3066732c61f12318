"""What a process takes as time goes by, and whether that is level."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import linear_regression
from typing import Final

import attrs
import psutil

FIELDS: Final = ("memory", "disk", "files", "threads")
"""What is measured, all of which should be level."""


@attrs.frozen(kw_only=True)
class Sample:
    """What the process takes at some moment.

    Attributes:
        calls: made so far.
        memory: bytes in RAM.
        disk: bytes of files.
        files: handles that are open.
        threads: that run.
    """

    calls: int
    memory: int
    disk: int
    files: int
    threads: int


@attrs.frozen(kw_only=True)
class Bounds:
    """How much more each may be in the last third of a run than it was in the second; the first is for warming up.

    Attributes:
        memory: bytes by which the largest may be larger, and by which the line through both thirds may rise.
        disk: likewise.
    """

    memory: int
    disk: int


@attrs.frozen(kw_only=True)
class Trend:
    """How one of the fields goes.

    Attributes:
        before: the largest in the second third.
        after: the largest in the last third.
        rise: of the straight line through both thirds, from end to end.
    """

    before: int
    after: int
    rise: float


@contextmanager
def without_what_was_imported() -> Iterator[None]:
    """Have Python look for garbage among what is made in this context only: all else takes half a second each time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def measure(calls: int, disk: int) -> Sample:
    """Return what this process takes, after Python has looked for garbage and glibc has given back what is free.

    Else what is free but lies below something in use at the heap's end counts, by tens of MiB: hnswlib takes 2.5 MiB
    for every graph, most of it locks, and now and then one of them lands there.
    """
    gc.collect()
    if (give_back := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        give_back(0)
    process = psutil.Process()
    with process.oneshot():
        return Sample(
            calls=calls,
            memory=process.memory_info().rss,
            disk=disk,
            files=process.num_fds(),
            threads=process.num_threads(),
        )


def trend(samples: Sequence[Sample], field: str) -> Trend:
    """Return how a field goes over the last two thirds of the samples, of which there are at least six."""
    third = len(samples) // 3
    values = [getattr(sample, field) for sample in samples[third:]]
    calls = [sample.calls for sample in samples[third:]]
    return Trend(
        before=max(values[:third]),
        after=max(values[third:]),
        rise=linear_regression(calls, values).slope * (calls[-1] - calls[0]),
    )


def problems(samples: Sequence[Sample], bounds: Bounds) -> list[str]:
    """Return what is not level, in words."""
    found = []
    for field in FIELDS:
        seen, most = trend(samples, field), getattr(bounds, field, 0)
        if seen.after > seen.before + most:
            found.append(f"{field} was {seen.before:,} at most and then {seen.after:,}, {most:,} more are allowed")
        if most and seen.rise > most:
            found.append(f"{field} rises by {seen.rise:,.0f}, {most:,} are allowed")
    return found
