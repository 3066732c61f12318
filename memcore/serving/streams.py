"""Answers that are sent while they are made, and clients that go away before the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse

from memcore.errors import MemcoreError
from memcore.serving.errors import answer_to

T = TypeVar("T")


async def while_connected(request: Request, result: Awaitable[T]) -> T:
    """Return what is awaited, or give it up when the client goes away. The request's body must have been read.

    Raises:
        ClientDisconnect: it went away.
    """
    waiting = asyncio.ensure_future(result)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ClientDisconnect
        return waiting.result()
    finally:
        for each in (waiting, gone):
            each.cancel()
        await asyncio.wait({waiting, gone})


async def event_stream(
    request: Request, events: AsyncGenerator[T], data: Callable[[T], object], *, end: str = ""
) -> StreamingResponse:
    """Answer with server-sent events.

    The answer begins with the first event, so that what is wrong with the request is told by its status; what goes
    wrong later is the last event, ``{"error": ...}``.

    Args:
        request: its body must have been read.
        events: what to send.
        data: gives an event as it is sent, as JSON.
        end: what is sent in the end.

    Raises:
        MemcoreError: what ``events`` raised in place of the first.
        ClientDisconnect: the client went away before.
    """
    try:
        first = await while_connected(request, anext(events))
    except BaseException:
        await events.aclose()
        raise

    async def lines() -> AsyncGenerator[str]:
        try:
            yield _event(data(first))
            async for event in events:
                yield _event(data(event))
        except Exception as error:
            yield _event(answer_to(error)[1])
            if not isinstance(error, MemcoreError):
                raise  # to be logged by the server
        finally:
            await events.aclose()
        if end:
            yield f"data: {end}\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


def _event(data: object) -> str:
    return f"data: {json.dumps(data)}\n\n"


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
