"""OpenAI's own client against the server on a real socket."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from serving_memory import MARKUP, long_text

from memcore import Chat
from memcore.serving.app import Application
from memcore.serving.served_model import ServedModel

HI = [{"role": "user", "content": "Hi there"}]


@pytest.fixture
def client(url: str, token: str) -> Iterator[Any]:
    base = url.partition("/?")[0]
    with openai.OpenAI(base_url=f"{base}/v1", api_key=token, max_retries=0, timeout=60) as made:
        yield made


def reply(client: Any, messages: Any = HI, model: str = "tiny", **fields: Any) -> Any:
    return client.chat.completions.create(model=model, messages=messages, **{"max_tokens": 8, **fields})


def text(completion: Any) -> str:
    return str(completion.choices[0].message.content)


def chat(model: ServedModel, session: str | None = None) -> Chat:
    return Chat(model.session("book").model, model.tokenizer, session)


def test_the_model_is_listed_alone_and_with_each_session(client: Any) -> None:
    assert {each.id for each in client.models.list()} == {"tiny", "tiny/book", f"tiny/{MARKUP}"}
    assert client.models.retrieve("tiny/book").owned_by == "memcore"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("tiny/none")


def test_a_reply_is_that_of_a_chat(client: Any, model: ServedModel) -> None:
    told = reply(client)
    assert text(told) == chat(model).say("Hi there", max_new_tokens=8).text
    assert (told.object, told.model, told.choices[0].message.role) == ("chat.completion", "tiny", "assistant")
    assert told.choices[0].finish_reason == "length"
    assert told.usage.completion_tokens == 8
    assert told.usage.total_tokens == told.usage.prompt_tokens + 8
    assert told.usage.prompt_tokens_details.cached_tokens == 0


def test_a_history_is_read_as_a_chat_reads_its_own(client: Any, model: ServedModel) -> None:
    had = Chat(model.session("book").model, model.tokenizer, system="Be brief.")
    first = had.say("One", max_new_tokens=8).text
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "One"}]},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "Two"},
    ]
    assert text(reply(client, messages)) == had.say("Two", max_new_tokens=8).text


def test_a_stream_is_the_reply_in_pieces(client: Any) -> None:
    whole = reply(client)
    chunks = list(reply(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(each.choices[0].delta.content or "" for each in chunks if each.choices) == text(whole)
    assert len(chunks) > 4
    assert [each.choices[0].finish_reason for each in chunks[:-1]][-1] == "length"
    assert chunks[-1].usage == whole.usage
    assert len({each.id for each in chunks}) == 1


@pytest.mark.parametrize("named", [{"model": "tiny/book"}, {"extra_body": {"session": "book"}}])
def test_a_session_comes_before_the_conversation_and_keeps_nothing_of_it(
    client: Any, model: ServedModel, named: dict[str, Any]
) -> None:
    model.memory.sessions.copy("book", "twin")
    try:
        had = chat(model, "twin")
        first = had.say("One", max_new_tokens=8).text
        second = had.say("Two", max_new_tokens=8).text
    finally:
        model.memory.sessions.drop("twin")
    before = model.memory.sessions.info("book")
    messages = [{"role": "user", "content": "One"}]
    told = reply(client, messages, **named)
    assert text(told) == first != text(reply(client, messages))
    assert told.usage.prompt_tokens_details.cached_tokens == before.tokens
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "Two"}]
    assert text(reply(client, messages, **named)) == second
    assert model.memory.sessions.info("book") == before


def test_what_the_system_says_comes_after_what_a_session_has_read(client: Any) -> None:
    beside = reply(client, [{"role": "system", "content": "Sys"}, {"role": "user", "content": "Go"}], "tiny/book")
    within = reply(client, [{"role": "user", "content": "Sys\n\nGo"}], "tiny/book")
    assert (text(beside), beside.usage) == (text(within), within.usage)


def test_a_conversation_that_outgrows_the_window_is_replied_to(client: Any) -> None:
    told = reply(client, [{"role": "user", "content": long_text(300, seed=2)}])
    assert told.usage.prompt_tokens > 300
    assert text(told)


def test_a_reply_ends_before_a_stop(client: Any) -> None:
    whole = text(reply(client, max_tokens=24))
    stop = whole[10:12]
    told = reply(client, max_tokens=24, stop=["never to be found", stop])
    assert text(told) == whole[: whole.index(stop)].strip()
    assert told.choices[0].finish_reason == "stop"
    pieces = [each.choices[0].delta.content or "" for each in reply(client, max_tokens=24, stop=stop, stream=True)]
    assert "".join(pieces) == text(told)


def test_sampling_follows_temperature_top_p_and_seed(client: Any) -> None:
    def sampled(**fields: Any) -> str:
        return text(reply(client, max_tokens=16, **fields))

    likeliest = sampled()
    assert sampled(temperature=0) == sampled(temperature=1e-30) == likeliest
    assert sampled(temperature=1.8, seed=4) == sampled(temperature=1.8, seed=4) != sampled(temperature=1.8, seed=5)
    assert sampled(temperature=1.8, top_p=1e-6, seed=1) == likeliest


def test_max_completion_tokens_is_taken_too(client: Any) -> None:
    told = client.chat.completions.create(model="tiny", messages=HI, max_completion_tokens=3)
    assert told.usage.completion_tokens == 3


@pytest.mark.parametrize(
    ("fields", "error", "param", "says"),
    [
        ({"model": "gpt"}, "NotFoundError", "model", "there is no model 'gpt'"),
        ({"model": "tiny/none"}, "NotFoundError", None, "there is no session 'none'"),
        ({"model": "tiny/book", "extra_body": {"session": "other"}}, "BadRequestError", "session", "name one"),
        ({"messages": []}, "BadRequestError", "messages", "not empty"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "BadRequestError", "messages", "must be the user's"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "BadRequestError", "messages[0].role", "'user'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
            "BadRequestError",
            "messages[0].content",
            "parts of type text",
        ),
        ({"n": 2}, "BadRequestError", "n", "not served"),
        ({"temperature": 9}, "BadRequestError", "temperature", "from 0 to 2"),
        ({"stop": [""]}, "BadRequestError", "stop", "none empty"),
        ({"max_tokens": 0}, "BadRequestError", "max_tokens", "at least 1"),
        ({"max_tokens": 2**63}, "BadRequestError", "max_tokens", f"below {2**63}"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "BadRequestError", "tools", "not served"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_have_the_shape_that_the_client_knows(
    client: Any, fields: dict[str, Any], error: str, param: str | None, says: str, stream: bool
) -> None:
    with pytest.raises(getattr(openai, error)) as refused:
        reply(client, **{"stream": stream, **fields})
    assert refused.value.param == param
    assert says in refused.value.body["message"]


def test_a_wrong_key_is_an_authentication_error(url: str) -> None:
    stranger = openai.OpenAI(base_url=f"{url.partition('/?')[0]}/v1", api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError) as refused:
        stranger.models.list()
    assert refused.value.code == "invalid_api_key"


def test_a_client_that_goes_away_gives_its_turn_up(client: Any) -> None:
    with reply(client, stream=True, max_tokens=1_000_000) as stream:
        next(iter(stream))
    assert reply(client, max_tokens=1).usage.completion_tokens == 1
    with pytest.raises(openai.APITimeoutError):
        reply(client, max_tokens=1_000_000, timeout=0.3)
    assert reply(client, max_tokens=1).usage.completion_tokens == 1


def test_conversations_at_once_are_served_in_turn(client: Any) -> None:
    alone = text(reply(client))
    heard: list[str] = []
    threads = [threading.Thread(target=lambda: heard.append(text(reply(client)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == [alone] * 4


def test_more_than_may_wait_are_told_to_come_back(model: ServedModel, contents: Any, token: str) -> None:
    from starlette.testclient import TestClient

    app = Application(contents, model, token=token, waiting=0)
    body = {"model": "tiny", "messages": HI, "max_tokens": 60}
    with TestClient(app, base_url="http://127.0.0.1", headers={"authorization": f"Bearer {token}"}) as here:
        answers: list[Any] = []
        threads = [
            threading.Thread(target=lambda: answers.append(here.post("/v1/chat/completions", json=body)))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    refused, served = sorted(answers, key=lambda each: -each.status_code)
    assert (refused.status_code, served.status_code) == (503, 200)
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["type"] == "server_error"
