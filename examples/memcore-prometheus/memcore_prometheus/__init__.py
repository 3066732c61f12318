"""What memcore stores, retrieves and evicts, as Prometheus metrics."""

from memcore_prometheus.metrics import Metrics
from memcore_prometheus.plugin import METRICS
from memcore_prometheus.server import serve

__all__ = ["METRICS", "Metrics", "serve"]
