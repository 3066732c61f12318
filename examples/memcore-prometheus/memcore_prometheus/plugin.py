"""The plugin: hooks that write metrics.

If the environment variable ``MEMCORE_PROMETHEUS`` names a port, the metrics are served there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from prometheus_client import REGISTRY

import memcore
from memcore_prometheus.metrics import Metrics
from memcore_prometheus.server import serve

if TYPE_CHECKING:
    from torch import Tensor

ENVIRONMENT: Final = "MEMCORE_PROMETHEUS"

METRICS: Final = Metrics(REGISTRY)
"""The metrics of this process, in the registry that prometheus_client uses by default."""


@memcore.hookimpl
def memcore_opened(backend: str, holdings: Callable[[], memcore.Holdings | None]) -> None:
    """Take in a memory, for the gauges."""
    METRICS.open.add(backend, holdings)


@memcore.hookimpl
def memcore_stored(backend: str, ids: Tensor, nbytes: int, seconds: float) -> None:
    """Count chunks that were stored."""
    METRICS.stored.labels(backend).inc(len(ids))
    METRICS.stored_bytes.labels(backend).inc(nbytes)
    METRICS.store_seconds.labels(backend).observe(seconds)


@memcore.hookimpl
def memcore_retrieved(
    backend: str, ids: Tensor, result: memcore.SearchResult | None, nbytes: int, seconds: float
) -> None:
    """Count chunks that came back."""
    METRICS.retrieved.labels(backend).inc(len(ids))
    METRICS.retrieved_bytes.labels(backend).inc(nbytes)
    METRICS.searches.labels(backend).inc(result is not None)
    METRICS.retrieve_seconds.labels(backend).observe(seconds)


@memcore.hookimpl
def memcore_evicted(backend: str, ids: Tensor, seconds: float) -> None:
    """Count chunks that were dropped to make room."""
    METRICS.evicted.labels(backend).inc(len(ids))
    METRICS.evict_seconds.labels(backend).observe(seconds)


if os.environ.get(ENVIRONMENT):
    try:
        serve(os.environ[ENVIRONMENT])
    except (OSError, ValueError) as error:  # of two processes with one port the second counts, too, and goes on
        logging.getLogger("memcore.prometheus").warning("%s cannot be served: %s", ENVIRONMENT, error)
