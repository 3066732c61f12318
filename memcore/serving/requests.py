"""What requests may ask for, checked field by field."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import attrs
import torch
from starlette.requests import Request

from memcore.options import describe, unknown_field
from memcore.serving.errors import RequestError
from memcore.transcript import Message

_LONGEST_BODY: Final = 16 * 2**20
"""Bytes of a request's body."""

_LONGEST_ANSWER: Final = 512
"""Tokens of an answer if the request does not say."""

_SEEDS: Final = 2**63

_LEAST_TEMPERATURE: Final = 1e-6
"""Divided by less, logits are no longer numbers; and by this the likeliest token is certain already."""

_NOT_SERVED: Final[Mapping[str, tuple[object, ...]]] = {
    "n": (None, 1),
    "tools": (None, []),
    "functions": (None, []),
    "logprobs": (None, False),
    "logit_bias": (None, {}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
}
"""Fields of OpenAI's interface that change the reply and are not served, with the values that ask for nothing."""


@attrs.frozen(kw_only=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: None, or less than a millionth, for the likeliest token each time, unless ``top_p`` is given.
        top_p: sample among the likeliest tokens that have this share of the probability together.
        seed: of what is sampled; None for another each time.
    """

    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None

    @contextmanager
    def generation(self) -> Iterator[dict[str, Any]]:
        """Give the arguments of ``generate()``, which must be called in this context."""
        temperature = self.temperature if self.temperature is not None else 0.0 if self.top_p is None else 1.0
        if temperature < _LEAST_TEMPERATURE:
            yield {"do_sample": False}
            return
        with torch.random.fork_rng():
            if self.seed is None:
                torch.seed()
            else:
                torch.manual_seed(self.seed)
            yield {"do_sample": True, "temperature": temperature, "top_p": self.top_p or 1.0, "top_k": 0}


@attrs.frozen(kw_only=True)
class AskRequest:
    """A question to a session.

    Attributes:
        session: its name.
        question: what is asked.
        max_new_tokens: longest answer.
        sampling: how tokens are chosen.
    """

    session: str
    question: str
    max_new_tokens: int
    sampling: Sampling


@attrs.frozen(kw_only=True)
class ChatRequest:
    """A conversation whose next reply is wanted.

    Attributes:
        model: which model, perhaps with a session.
        session: the session that the conversation goes on in, if it is not named by ``model``.
        system: what the model is told before anything else, empty for nothing.
        turns: messages of the user and the assistant by turns, the user's first and last.
        max_tokens: longest reply.
        stops: texts that end it.
        sampling: how tokens are chosen.
        stream: whether the reply is sent piece by piece.
        include_usage: whether the end of a stream tells how many tokens there were.
    """

    model: str
    session: str | None
    system: str
    turns: tuple[Message, ...]
    max_tokens: int
    stops: tuple[str, ...]
    sampling: Sampling
    stream: bool
    include_usage: bool


async def read_json(request: Request) -> Mapping[str, object]:
    """Return the object in a request's body.

    Raises:
        RequestError: there is none, or it is too long.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError(f"the body must be application/json, got {kind or 'no content-type'}", status=415)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _LONGEST_BODY:
            raise RequestError(f"the body must be no longer than {_LONGEST_BODY:,} bytes", status=413)
    try:
        values: object = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise RequestError(f"the body must be an object, got {describe(values)}")
    return values


def ask_request(values: Mapping[str, object]) -> AskRequest:
    """Check the fields of a question.

    Raises:
        RequestError: one of them cannot be used, or is unknown.
    """
    known = {"session", "question", "max_new_tokens", "temperature", "top_p", "seed"}
    for name in values:
        if name not in known:
            raise RequestError(unknown_field(name, known), param=name)
    return AskRequest(
        session=_text(values, "session"),
        question=_text(values, "question"),
        max_new_tokens=_whole(values, "max_new_tokens", least=1) or _LONGEST_ANSWER,
        sampling=_sampling(values),
    )


def chat_request(values: Mapping[str, object]) -> ChatRequest:
    """Check the fields of a chat completion. Those that are not known, or change nothing, are passed over.

    Raises:
        RequestError: one of them cannot be used.
    """
    for name, nothing in _NOT_SERVED.items():
        if values.get(name) not in nothing:
            raise RequestError(f"{name} is not served, got {describe(values[name])}", param=name, code="not_supported")
    system, turns = _conversation(values.get("messages"))
    options = values.get("stream_options") or {}
    if not isinstance(options, Mapping):
        raise RequestError(f"stream_options must be an object, got {describe(options)}", param="stream_options")
    longest = _whole(values, "max_completion_tokens", least=1) or _whole(values, "max_tokens", least=1)
    return ChatRequest(
        model=_text(values, "model"),
        session=None if values.get("session") is None else _text(values, "session"),
        system=system,
        turns=turns,
        max_tokens=longest or _LONGEST_ANSWER,
        stops=_stops(values.get("stop")),
        sampling=_sampling(values),
        stream=_flag(values, "stream"),
        include_usage=_flag(options, "include_usage"),
    )


def whole_number(text: str | None, name: str) -> int | None:
    """Return a number of an address's query, None if it is not there.

    Raises:
        RequestError: it is none.
    """
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise RequestError(f"{name} must be a whole number, got {describe(text)}", param=name)
    return int(text)


def _text(values: Mapping[str, object], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str) or not value.strip():
        raise RequestError(f"{name} must be a text that is not empty, got {describe(value)}", param=name)
    return value


def _flag(values: Mapping[str, object], name: str) -> bool:
    value = values.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false, got {describe(value)}", param=name)
    return bool(value)


def _whole(values: Mapping[str, object], name: str, *, least: int) -> int | None:
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < _SEEDS:
        raise RequestError(
            f"{name} must be a whole number of at least {least} and below {_SEEDS}, got {describe(value)}", param=name
        )
    return value


def _number(values: Mapping[str, object], name: str, *, most: float) -> float | None:
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most or math.isnan(value):
        raise RequestError(f"{name} must be a number from 0 to {most:g}, got {describe(value)}", param=name)
    return float(value)


def _sampling(values: Mapping[str, object]) -> Sampling:
    top_p = _number(values, "top_p", most=1)
    if top_p == 0:
        raise RequestError("top_p must be more than 0, got 0", param="top_p")
    return Sampling(
        temperature=_number(values, "temperature", most=2),
        top_p=top_p,
        seed=_whole(values, "seed", least=-_SEEDS),
    )


def _stops(value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, Sequence) or not all(isinstance(each, str) and each for each in stops):
        raise RequestError(f"stop must be a text or a list of texts, none empty, got {describe(value)}", param="stop")
    return tuple(stops)


def _conversation(messages: object) -> tuple[str, tuple[Message, ...]]:
    """Return the system message and the turns; what one side says in several messages is one turn."""
    if not isinstance(messages, list) or not messages:
        raise RequestError(f"messages must be a list that is not empty, got {describe(messages)}", param="messages")
    system: list[str] = []
    turns: list[Message] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, Mapping):
            raise RequestError(f"{where} must be an object with role and content, got {describe(message)}", param=where)
        role = message.get("role")
        text = _content(message.get("content"), f"{where}.content")
        if role in ("system", "developer") and not turns:
            system.append(text)
        elif role not in ("user", "assistant"):
            raise RequestError(
                f"{where}.role must be 'user' or 'assistant', or at the beginning 'system', got {describe(role)}",
                param=f"{where}.role",
            )
        elif turns and turns[-1]["role"] == role:
            turns[-1]["content"] += f"\n\n{text}"
        else:
            turns.append({"role": str(role), "content": text})
    if not turns or turns[0]["role"] != "user" or turns[-1]["role"] != "user":
        raise RequestError("the first and the last message of a conversation must be the user's", param="messages")
    return "\n\n".join(system), tuple(turns)


def _content(content: object, where: str) -> str:
    if isinstance(content, str):
        text = content
    elif isinstance(content, list) and all(
        isinstance(each, Mapping) and each.get("type") == "text" and isinstance(each.get("text"), str)
        for each in content
    ):
        text = "".join(each["text"] for each in content)
    else:
        raise RequestError(
            f"{where} must be a text, or a list of parts of type text, got {describe(content)}", param=where
        )
    if not text.strip():
        raise RequestError(f"{where} is empty", param=where)
    return text.strip()
