"""The interface of the page: sessions, text, counters, and questions with what each token rests on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from character_tokenizer import character_tokenizer
from serving_memory import CONFIG, MARKUP, long_text
from starlette.testclient import TestClient
from tiny_models import tiny_model

import memcore
from memcore import Session
from memcore.serving.app import Application
from memcore.serving.served_model import ServedModel
from memcore.session_contents import SessionContents

HERE = "http://127.0.0.1:8321"
QUESTION = {"session": "book", "question": "abc?", "max_new_tokens": 6}


def ask(client: TestClient, **fields: Any) -> list[dict[str, Any]]:
    """Return the events of an answer."""
    answer = client.post("/api/v1/ask", json=QUESTION | fields)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]


def tokens_of(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in events if each["type"] == "token"]


def test_the_memory_lists_its_sessions(client: TestClient) -> None:
    told = client.get("/api/v1/memory").json()
    assert (told["model"], told["path"]) == ("tiny", "a/memory")
    assert sorted(each["name"] for each in told["sessions"]) == sorted([MARKUP, "book"])


def test_a_session_tells_the_counters_of_its_bank(client: TestClient, model: ServedModel) -> None:
    told = client.get("/api/v1/session", params={"name": "book"}).json()
    info, bank = model.memory.sessions.info("book"), model.memory.bank
    namespaces = [info.namespace(layer) for layer in info.next_ids]
    assert told["tokens"] == info.tokens
    assert [each["chunks"] for each in told["layers"]] == [bank.count(each) for each in namespaces]
    assert told["retrievals"] == sum(bank.usage(each).retrievals for each in namespaces).tolist()  # type: ignore[union-attr]
    assert sum(told["retrievals"]) > 0
    assert set(told["held"]) == {len(namespaces)}
    assert told["tokenizer"] is True


def test_chunks_begin_where_the_page_takes_them_to_begin(client: TestClient, model: ServedModel) -> None:
    told = client.get("/api/v1/session", params={"name": "book"}).json()
    info, bank = model.memory.sessions.info("book"), model.memory.bank
    sinks, size = told["config"]["sinks"], told["config"]["chunk_size"]
    for layer in info.next_ids:
        namespace = info.namespace(layer)
        ids = bank.ids(namespace)
        assert bank.fetch(namespace, ids).starts.tolist() == (sinks + ids * size).tolist()


def test_what_was_evicted_is_told() -> None:
    tokenizer = character_tokenizer()
    model = memcore.wrap(tiny_model("llama"), **CONFIG, capacity=160)
    Session(model, "book", tokenizer).ingest(long_text())
    told = SessionContents(model.memory.sessions, lambda _: tokenizer).session("book")
    gone = [layer["stored"] - layer["chunks"] for layer in told["layers"]]
    assert min(gone) > 0
    assert len(told["held"]) == told["layers"][0]["stored"]
    assert sum(told["held"]) == sum(layer["chunks"] for layer in told["layers"]) == told["chunks"]
    assert 0 in told["held"]


def test_the_pieces_are_the_text(client: TestClient, model: ServedModel) -> None:
    whole = client.get("/api/v1/text", params={"name": "book"}).json()["pieces"]
    assert "".join(whole) == model.tokenizer.decode(model.session("book").token_ids()[0])
    assert long_text() in "".join(whole)
    some = client.get("/api/v1/text", params={"name": "book", "first": 3, "count": 2}).json()
    assert some == {"first": 3, "pieces": whole[3:5]}
    assert client.get("/api/v1/text", params={"name": "book", "first": 10_000}).json()["pieces"] == []


def test_an_answer_comes_token_by_token_with_what_each_rests_on(client: TestClient, model: ServedModel) -> None:
    events = ask(client)
    begin, tokens, end = events[0], tokens_of(events), events[-1]
    answer = model.session("book").ask("abc?", max_new_tokens=6)
    assert begin == {"type": "begin"}
    assert [each["token_id"] for each in tokens] == answer.token_ids.tolist()
    assert "".join(each["text"] for each in tokens) == answer.text == end["text"]
    assert end["tokens"] == 6
    assert [each["position"] for each in tokens] == list(range(tokens[0]["position"], tokens[0]["position"] + 6))


def test_the_shares_are_those_of_the_trace(client: TestClient, model: ServedModel) -> None:
    tokens = tokens_of(ask(client))
    with model.memory.trace() as trace:
        model.session("book").ask("abc?", max_new_tokens=6)
    for told, traced in zip(tokens, trace.tokens(), strict=True):
        shares = {start: share for start, share in traced.shares().items() if share >= 0.001}
        assert {each["start"]: each["share"] for each in told["passages"]} == pytest.approx(shares, abs=1e-5)
        assert told["memory"] + told["sinks"] + told["window"] == pytest.approx(1, abs=1e-4)
        assert told["memory"] >= sum(each["share"] for each in told["passages"]) - 1e-4
        for passage in told["passages"]:
            layers = {str(each.layer): each.share for each in traced.chunks if each.start == passage["start"]}
            assert passage["layers"] == pytest.approx(layers, abs=1e-5)


def test_asking_leaves_the_session_as_it_was(client: TestClient) -> None:
    before = client.get("/api/v1/session", params={"name": "book"}).json()
    assert ask(client)[-1]["text"] == ask(client)[-1]["text"]
    assert client.get("/api/v1/session", params={"name": "book"}).json() == before


def test_a_seed_makes_what_is_sampled_the_same_again_and_leaves_the_generator_alone(client: TestClient) -> None:
    state = torch.random.get_rng_state()
    sampled = [ask(client, temperature=1.5, seed=seed, max_new_tokens=12)[-1]["text"] for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_long_question_is_read_with_progress(client: TestClient) -> None:
    events = ask(client, question=long_text(200, seed=3), max_new_tokens=1)
    reading = [each for each in events if each["type"] == "reading"]
    assert reading
    assert all(0 < each["done"] <= each["total"] for each in reading)


@pytest.mark.parametrize(
    ("fields", "status", "says", "param"),
    [
        ({"session": "none"}, 404, "there is no session 'none'", None),
        ({"question": "  "}, 400, "question must be a text that is not empty", "question"),
        ({"question": 3}, 400, "question must be", "question"),
        ({"max_new_tokens": 0}, 400, "max_new_tokens must be a whole number of at least 1", "max_new_tokens"),
        ({"max_new_tokens": True}, 400, "max_new_tokens must be", "max_new_tokens"),
        ({"temperature": 3}, 400, "temperature must be a number from 0 to 2", "temperature"),
        ({"top_p": 0}, 400, "top_p must be more than 0", "top_p"),
        ({"topp": 1}, 400, "unknown field 'topp'", "topp"),
    ],
)
def test_what_is_wrong_with_a_question_is_said(
    client: TestClient, fields: dict[str, Any], status: int, says: str, param: str | None
) -> None:
    refused = client.post("/api/v1/ask", json=QUESTION | fields)
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (status, param)
    assert says in error["message"]


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{}", "text/plain", 415),
        (b"{", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"[]", "application/json", 400),
        (b" " * (16 * 2**20 + 1), "application/json", 413),
    ],
)
def test_a_body_that_is_no_object_is_refused(client: TestClient, content: bytes, kind: str, status: int) -> None:
    for path in ("/api/v1/ask", "/v1/chat/completions"):
        assert client.post(path, content=content, headers={"content-type": kind}).status_code == status


@pytest.mark.parametrize(
    "query", ["", "?name=", "?name=none", "?name=book&first=-1", "?name=book&count=0", "?name=book&first=x"]
)
def test_what_is_wrong_with_an_address_is_said(client: TestClient, query: str) -> None:
    refused = client.get(f"/api/v1/text{query}")
    assert refused.status_code in (400, 404)
    assert refused.json()["error"]["message"]


def test_without_a_model_the_sessions_are_shown_and_nothing_can_be_asked(contents: SessionContents, token: str) -> None:
    app = Application(contents, None, token=token)
    with TestClient(app, base_url="http://127.0.0.1", headers={"authorization": f"Bearer {token}"}) as client:
        assert client.get("/api/v1/memory").json()["model"] is None
        assert client.get("/api/v1/session", params={"name": "book"}).status_code == 200
        assert "there is no model here" in client.post("/api/v1/ask", json=QUESTION).json()["error"]["message"]
        assert client.get("/v1/models").status_code == 404


def test_a_session_that_reads_on_is_shown_and_asked_as_it_is_now(
    client: TestClient, model: ServedModel, contents: SessionContents
) -> None:
    sessions = model.memory.sessions
    sessions.copy("book", "growing")
    try:
        before = client.get("/api/v1/session", params={"name": "growing"}).json()
        first = tokens_of(ask(client, session="growing"))
        Session(model.session("growing").model, "growing", model.tokenizer).ingest(long_text(90, seed=5))
        after = client.get("/api/v1/session", params={"name": "growing"}).json()
        assert len(after["retrievals"]) > len(before["retrievals"])
        assert long_text(90, seed=5) in "".join(contents.text("growing"))
        assert tokens_of(ask(client, session="growing"))[0]["position"] > first[0]["position"]
    finally:
        sessions.drop("growing")
    assert client.post("/api/v1/ask", json=QUESTION | {"session": "growing"}).status_code == 404


def test_a_session_that_read_nothing_is_shown_and_cannot_be_asked(client: TestClient, model: ServedModel) -> None:
    Session(model.session("book").model, "empty", model.tokenizer)
    try:
        told = client.get("/api/v1/session", params={"name": "empty"}).json()
        assert (told["tokens"], told["retrievals"]) == (0, [])
        assert client.get("/api/v1/text", params={"name": "empty"}).json()["pieces"] == [""]
        refused = client.post("/api/v1/ask", json=QUESTION | {"session": "empty"})
        assert (refused.status_code, "has read nothing yet" in refused.text) == (409, True)
    finally:
        model.memory.sessions.drop("empty")


def test_questions_at_once_are_answered_one_after_the_other(client: TestClient) -> None:
    alone = ask(client)[-1]["text"]
    answers: list[str] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(client)[-1]["text"])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [alone] * 4


@contextmanager
def failing(model: ServedModel) -> Iterator[None]:
    """Have the model fail as a bug does."""

    def fail(*_: Any) -> None:
        raise RuntimeError("no such kernel")

    hook = model.session("book").model.register_forward_hook(fail)
    try:
        yield
    finally:
        hook.remove()


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny/book", "messages": [{"role": "user", "content": "a"}], "max_tokens": 3, **fields}


@pytest.mark.parametrize(
    ("path", "body"), [("/api/v1/ask", QUESTION), ("/v1/chat/completions", chat(stream=True))], ids=["ask", "chat"]
)
def test_a_bug_in_the_middle_of_an_answer_is_its_last_event(
    app: Any, model: ServedModel, token: str, path: str, body: dict[str, Any]
) -> None:
    headers = {"authorization": f"Bearer {token}"}
    with TestClient(app, base_url=HERE, headers=headers, raise_server_exceptions=False) as client:
        with failing(model):
            answer = client.post(path, json=body)
        *_, last = (json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line)
        assert last["error"]["type"] == "server_error"
        assert "RuntimeError: no such kernel" in last["error"]["message"]
        assert client.post(path, json=body).text.count("no such kernel") == 0


def test_a_bug_is_an_answer_of_the_shape_of_all_errors(app: Any, model: ServedModel, token: str) -> None:
    headers = {"authorization": f"Bearer {token}"}
    with TestClient(app, base_url=HERE, headers=headers, raise_server_exceptions=False) as client:
        with failing(model):
            answer = client.post("/v1/chat/completions", json=chat())
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "internal_error"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert client.post("/v1/chat/completions", json=chat()).status_code == 200


def test_half_a_character_is_no_text(client: TestClient) -> None:
    def post(path: str, body: dict[str, Any]) -> Any:
        return client.post(path, content=json.dumps(body).encode(), headers={"content-type": "application/json"})

    events = post("/api/v1/ask", QUESTION | {"question": "a\ud800"}).text
    assert json.loads(events.split("\n\n")[-2].removeprefix("data: "))["error"]["code"] == "unsupported_input"
    told = post("/v1/chat/completions", chat(messages=[{"role": "user", "content": "a\ud800"}]))
    assert (told.status_code, told.json()["error"]["code"]) == (400, "unsupported_input")
    for body in (chat(model="tiny/\ud800"), chat(model="\ud800"), chat(session="\ud800", model="tiny")):
        assert post("/v1/chat/completions", body).status_code == 404
