"""``/api/v1``: sessions, their text and counters, and questions with what each token of the answer rests on."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from memcore.options import unstructure
from memcore.serving.asking import Exchange, WrittenToken
from memcore.serving.errors import RequestError
from memcore.serving.one_at_a_time import OneAtATime
from memcore.serving.report import memory_record
from memcore.serving.requests import ask_request, read_json, whole_number
from memcore.serving.served_model import ServedModel
from memcore.serving.streams import event_stream
from memcore.session_contents import SessionContents

Event = dict[str, Any]


class Api:
    """The interface that the page uses.

    Args:
        contents: the sessions.
        served: the model; None where there is none and nothing can be asked.
        queue: where questions wait.
        path: of the memory, as it is shown.
    """

    def __init__(self, contents: SessionContents, served: ServedModel | None, queue: OneAtATime, path: str) -> None:
        self._contents = contents
        self._served = served
        self._queue = queue
        self._path = path

    def routes(self) -> list[Route]:
        """Return what to serve."""
        return [
            Route("/api/v1/memory", self.memory),
            Route("/api/v1/session", self.session),
            Route("/api/v1/text", self.text),
            Route("/api/v1/ask", self.ask, methods=["POST"]),
        ]

    async def memory(self, request: Request) -> Response:
        """Tell what is served: the model, the memory's path, and its sessions."""
        sessions = await run_in_threadpool(self._contents.summaries)
        return JSONResponse(memory_record(self._path, None if self._served is None else self._served.name, sessions))

    async def session(self, request: Request) -> Response:
        """Tell all about a session but its text."""
        return JSONResponse(await run_in_threadpool(self._contents.session, _session(request)))

    async def text(self, request: Request) -> Response:
        """Tell a session's text in its pieces, from ``first`` on, ``count`` of them."""
        first = whole_number(request.query_params.get("first"), "first") or 0
        count = whole_number(request.query_params.get("count"), "count")
        pieces = await run_in_threadpool(self._contents.text, _session(request), first, count)
        return JSONResponse({"first": first, "pieces": pieces})

    async def ask(self, request: Request) -> Response:
        """Answer a question as a stream of events: ``begin``, ``reading``, ``token``, ``end``."""
        asked = ask_request(await read_json(request))
        served = self._served
        if served is None:
            raise RequestError("there is no model here to ask: serve one with `memcore serve MODEL`", code="no_model")

        def work(tell: Callable[[Event], None], stopped: threading.Event) -> None:
            served.check(asked.session)
            tell({"type": "begin"})

            def token(written: WrittenToken) -> None:
                tell({"type": "token", **unstructure(written)})

            def progress(done: int, total: int) -> None:
                tell({"type": "reading", "done": done, "total": total})

            tell(_end(served.ask(asked, token, progress, stopped)))

        events: AsyncGenerator[Event] = self._queue.run(work)
        return await event_stream(request, events, lambda event: event)


def _end(exchange: Exchange) -> Event:
    return {"type": "end", "text": exchange.text, "seconds": exchange.seconds, "tokens": len(exchange.tokens)}


def _session(request: Request) -> str:
    name = request.query_params.get("name")
    if not name:
        raise RequestError("name the session: ?name=...", param="name")
    return name
