"""Counts what memcore stores, retrieves and evicts, by namespace: ``memcore_metrics.METRICS`` has the numbers."""

from memcore_metrics.counts import Counts, Metrics
from memcore_metrics.plugin import METRICS

__all__ = ["METRICS", "Counts", "Metrics"]
