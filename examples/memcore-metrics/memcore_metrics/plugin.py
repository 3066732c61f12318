"""The plugin: observes store, retrieve and evict.

If the environment variable ``MEMCORE_METRICS`` names a file, the numbers are written there as JSON at the end.
"""

from __future__ import annotations

import atexit
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

import memcore
from memcore_metrics.counts import Metrics

if TYPE_CHECKING:
    from torch import Tensor

METRICS: Final = Metrics()
"""The numbers of this process."""


@memcore.hookimpl
def memcore_stored(namespace: str, ids: Tensor, nbytes: int) -> None:
    """Count chunks that were stored."""
    METRICS.add(namespace, stores=1, stored=len(ids), stored_bytes=nbytes)


@memcore.hookimpl
def memcore_retrieved(namespace: str, ids: Tensor, result: memcore.SearchResult | None) -> None:
    """Count chunks that will be attended to."""
    METRICS.add(namespace, retrievals=1, retrieved=len(ids), searches=0 if result is None else 1)


@memcore.hookimpl
def memcore_evicted(namespace: str, ids: Tensor) -> None:
    """Count chunks that were dropped to make room."""
    METRICS.add(namespace, evictions=1, evicted=len(ids))


def write(path: Path) -> None:
    """Write the numbers as JSON."""
    numbers = {
        "total": attrs.asdict(METRICS.total()),
        "namespaces": {name: attrs.asdict(counts) for name, counts in METRICS.by_namespace().items()},
    }
    path.write_text(json.dumps(numbers, indent=2), encoding="utf-8")


if os.environ.get("MEMCORE_METRICS"):
    atexit.register(write, Path(os.environ["MEMCORE_METRICS"]))
