"""The application: the page, the interface beneath it, and, where there is a model, OpenAI's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from memcore.errors import MemcoreError
from memcore.serving import errors
from memcore.serving.api import Api
from memcore.serving.chat_completions import ChatCompletions
from memcore.serving.guard import Guard
from memcore.serving.one_at_a_time import OneAtATime
from memcore.serving.page import FILES, asset
from memcore.serving.served_model import ServedModel
from memcore.session_contents import SessionContents

_GONE: Final = 499
"""Status for a client that does not hear it."""


class Application:
    """The application, behind its guard."""

    def __init__(
        self,
        contents: SessionContents,
        served: ServedModel | None,
        *,
        token: str,
        path: str = "",
        host: str = "127.0.0.1",
        names: Iterable[str] = (),
        waiting: int = 16,
    ) -> None:
        """Make it.

        Args:
            contents: the sessions to show.
            served: the model to ask; None for none.
            token: what a client must know.
            path: of the memory, as it is shown.
            host: what the server will listen on.
            names: further names that it goes by.
            waiting: requests that may wait for the model.
        """
        self._queue = queue = OneAtATime(waiting)

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            yield
            queue.close()

        routes = [Route(f"/{'' if name == 'index.html' else name}", _file, name=name) for name in FILES]
        routes += Api(contents, served, queue, path).routes()
        if served is not None:
            routes += ChatCompletions(served, queue).routes()
        app = Starlette(
            routes=routes,
            lifespan=lifespan,
            exception_handlers={
                MemcoreError: _told,
                HTTPException: _unserved,
                ClientDisconnect: _gone,
                Exception: _told,
            },
        )
        self._guarded = Guard(app, token=token, host=host, names=names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        await self._guarded(scope, receive, send)

    def stop(self) -> None:
        """End answers that are being written, where they are, as the server is about to end."""
        self._queue.stop()


async def _file(request: Request) -> Response:
    content, kind = asset(request.url.path.lstrip("/") or "index.html")
    return Response(content, media_type=kind)


async def _told(_: Request, error: Exception) -> Response:
    status, content = errors.answer_to(error)
    return JSONResponse(content, status, {"retry-after": "1"} if status == 503 else None)


async def _unserved(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path} is not served: {error.detail}"
    return JSONResponse(errors.body(message, error.status_code), error.status_code, error.headers)


async def _gone(_: Request, error: Exception) -> Response:
    return Response(status_code=_GONE)
