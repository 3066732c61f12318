"""Listening: the socket, the address to open, and the server."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Final

import uvicorn

from memcore.errors import ConfigError
from memcore.serving.app import Application

_GRACE: Final = 2
"""Seconds that answers under way get when the server is told to end."""


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: an address, or a name of one.
        port: 0 for any that is free.

    Raises:
        ConfigError: nothing can listen there.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error}; choose another with --host or --port"
        ) from error


def address(host: str, listener: socket.socket, token: str) -> str:
    """Return what to open in a browser on this machine."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{listener.getsockname()[1]}/?token={token}"


class _Server(uvicorn.Server):
    """Ends answers before it waits for their end."""

    def __init__(self, config: uvicorn.Config, app: Application) -> None:
        super().__init__(config)
        self._application = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._application.stop()
        await super().shutdown(sockets)


def serve(
    app: Application, listener: socket.socket, *, begun: Callable[[uvicorn.Server], None] = lambda _: None
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        app: the application.
        listener: where requests come in; it is closed at the end.
        begun: is given the server before it begins; ``should_exit = True`` ends it.
    """
    # No access log: the first address has the token in it. No websockets: nothing here speaks them.
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE,
    )
    server = _Server(config, app)
    begun(server)
    # uvicorn ends in order and then raises what it was ended by.
    with listener, contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
