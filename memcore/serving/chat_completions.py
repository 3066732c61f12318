"""``/v1``: conversations the way OpenAI's clients have them."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import AsyncGenerator, Callable
from datetime import datetime
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from memcore.serving.errors import RequestError
from memcore.serving.one_at_a_time import OneAtATime
from memcore.serving.requests import ChatRequest, chat_request, read_json
from memcore.serving.served_model import Reply, ServedModel
from memcore.serving.streams import event_stream, while_connected


class ChatCompletions:
    """Models and chat completions.

    A session is a model of its own, ``MODEL/SESSION``: what it has read comes before the conversation, and it keeps
    nothing of that. A client may also name it in the field ``session``.

    Args:
        served: the model.
        queue: where requests wait.
    """

    def __init__(self, served: ServedModel, queue: OneAtATime) -> None:
        self._served = served
        self._queue = queue
        self._begun = int(time.time())

    def routes(self) -> list[Route]:
        """Return what to serve."""
        return [
            Route("/v1/models", self.models),
            Route("/v1/models/{model:path}", self.model),
            Route("/v1/chat/completions", self.completions, methods=["POST"]),
        ]

    async def models(self, request: Request) -> Response:
        """List the model, alone and with each session."""
        return JSONResponse({"object": "list", "data": await run_in_threadpool(self._models)})

    async def model(self, request: Request) -> Response:
        """Tell of one of them."""
        wanted = request.path_params["model"]
        for each in await run_in_threadpool(self._models):
            if each["id"] == wanted:
                return JSONResponse(each)
        raise self._unknown(wanted)

    async def completions(self, request: Request) -> Response:
        """Reply to a conversation, at once or piece by piece."""
        asked = chat_request(await read_json(request))
        session = self._session(asked)
        envelope = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": "chat.completion.chunk" if asked.stream else "chat.completion",
            "created": int(time.time()),
            "model": asked.model,
        }

        def work(tell: Callable[[str | Reply], None], stopped: threading.Event) -> None:
            if session is not None:
                self._served.check(session)
            tell("")  # what was wrong with the request has been told until now
            tell(self._served.reply(asked, session, tell, stopped))

        results: AsyncGenerator[str | Reply] = self._queue.run(work)
        if asked.stream:
            events = _chunks(results, asked.include_usage)
            return await event_stream(request, events, lambda event: {**envelope, **event}, end="[DONE]")
        reply = await while_connected(request, _last(results))
        message = {"role": "assistant", "content": reply.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish_reason}
        return JSONResponse({**envelope, "choices": [choice], "usage": _usage(reply)})

    def _models(self) -> list[dict[str, Any]]:
        made = [(self._served.name, self._begun)]
        made += [
            (f"{self._served.name}/{info.name}", int(datetime.fromisoformat(info.created).timestamp()))
            for info in self._served.memory.sessions.infos()
        ]
        return [{"id": name, "object": "model", "created": when, "owned_by": "memcore"} for name, when in made]

    def _session(self, asked: ChatRequest) -> str | None:
        """Return the session that a conversation goes on in."""
        name, prefix = asked.model, f"{self._served.name}/"
        if name == self._served.name:
            return asked.session
        session = name.removeprefix(prefix)
        if session == name or not session:
            raise self._unknown(name)
        if asked.session not in (None, session):
            raise RequestError(
                f"model names session {session!r}, and session {asked.session!r}: name one", param="session"
            )
        return session

    def _unknown(self, name: str) -> RequestError:
        return RequestError(
            f"there is no model {name!r}; there is {self._served.name!r}, and {self._served.name + '/SESSION'!r} for "
            "each session",
            status=404,
            param="model",
            code="model_not_found",
        )


def _usage(reply: Reply) -> dict[str, Any]:
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "total_tokens": reply.prompt_tokens + reply.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": reply.cached_tokens},
    }


async def _last(results: AsyncGenerator[str | Reply]) -> Reply:
    try:
        async for result in results:
            if isinstance(result, Reply):
                return result
    finally:
        await results.aclose()
    raise RequestError("the reply was stopped", status=503, code="stopped")


async def _chunks(results: AsyncGenerator[str | Reply], include_usage: bool) -> AsyncGenerator[dict[str, Any]]:
    """Yield what a stream of chunks has beside its envelope."""

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {"choices": [choice], **({"usage": None} if include_usage else {})}

    begun = False
    try:
        async for result in results:
            if isinstance(result, Reply):
                yield chunk({}, result.finish_reason)
                if include_usage:
                    yield {"choices": [], "usage": _usage(result)}
            else:
                yield chunk({"content": result} if begun else {"role": "assistant", "content": ""})
                begun = True
    finally:
        await results.aclose()
