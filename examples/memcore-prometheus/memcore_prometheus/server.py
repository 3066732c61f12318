"""Where Prometheus fetches the metrics."""

from __future__ import annotations

import logging
from wsgiref.simple_server import WSGIServer

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server


def serve(where: str, registry: CollectorRegistry = REGISTRY) -> WSGIServer:
    """Serve metrics over HTTP, from a thread that ends with the process.

    Args:
        where: ``PORT``, which only this machine can reach, or ``ADDRESS:PORT``; port 0 for any that is free.
        registry: whose metrics.

    Returns:
        The server: ``server_port`` is its port, and ``shutdown()`` ends it.

    Raises:
        ValueError: the port is no number.
        OSError: it cannot be served there.
    """
    address, _, port = where.rpartition(":")
    server, _ = start_http_server(int(port), addr=address or "127.0.0.1", registry=registry)
    # The logger is one of memcore's, so that the command line shows it.
    logging.getLogger("memcore.prometheus").info("metrics are at http://%s:%d/metrics", *server.server_address[:2])
    return server
