"""Who is let in, and what every answer says to browsers."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from memcore.errors import ConfigError
from memcore.serving.app import Application
from memcore.serving.guard import check_token, is_loopback, new_token
from memcore.serving.page import FILES

PATHS = ("/", "/page.js", "/api/v1/memory", "/api/v1/session?name=book", "/v1/models", "/nowhere")


@pytest.mark.parametrize("path", PATHS)
def test_without_the_token_nothing_is_told(stranger: TestClient, path: str) -> None:
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic Og=="},
        {"cookie": "memcore-8321=x"},
    ):
        refused = stranger.get(path, headers=headers)
        assert refused.status_code == 401, headers
        assert refused.headers["www-authenticate"] == "Bearer"
        assert "token is missing or wrong" in refused.text
        assert "book" not in refused.text


def test_a_wrong_token_in_the_address_sets_no_cookie(stranger: TestClient) -> None:
    refused = stranger.get("/?token=wrong", follow_redirects=False)
    assert refused.status_code == 401
    assert "set-cookie" not in refused.headers


def test_the_address_lets_a_browser_in_and_then_its_cookie_does(stranger: TestClient, token: str) -> None:
    first = stranger.get(f"/?token={token}", follow_redirects=False)
    assert (first.status_code, first.headers["location"]) == (303, "/")
    cookie = first.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert stranger.get("/").status_code == 200
    assert stranger.get("/api/v1/memory").status_code == 200


def test_a_token_in_the_address_of_a_post_counts_for_nothing(stranger: TestClient, token: str) -> None:
    assert stranger.post(f"/api/v1/ask?token={token}", json={}).status_code == 401


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8321", "127.0.0.1.evil.example", "127.0.0.2", "", "[", "localhost.evil.example"],
)
def test_another_name_for_the_server_is_refused(client: TestClient, host: str) -> None:
    refused = client.get("/api/v1/memory", headers={"host": host})
    assert refused.status_code == 421
    assert refused.json()["error"]["code"] == "wrong_host"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8321", "[::1]:8321"])
def test_its_own_names_are_served(client: TestClient, host: str) -> None:
    assert client.get("/api/v1/memory", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    ("host", "names", "asked", "status"),
    [
        ("192.0.2.7", [], "192.0.2.7:8321", 200),
        ("192.0.2.7", [], "192.0.2.8", 421),
        ("127.0.0.2", [], "127.0.0.2:8321", 200),
        ("", [], "[", 421),
        ("192.0.2.7", ["box.example"], "Box.Example", 200),
        ("0.0.0.0", [], "192.0.2.8", 200),
        ("::", [], "[2001:db8::1]:8321", 200),
        ("0.0.0.0", [], "evil.example", 421),
    ],
)
def test_names_of_a_server_that_others_reach(
    model: Any, contents: Any, token: str, host: str, names: list[str], asked: str, status: int
) -> None:
    app = Application(contents, model, token=token, host=host, names=names)
    with TestClient(app, base_url="http://127.0.0.1", headers={"authorization": f"Bearer {token}"}) as client:
        assert client.get("/v1/models", headers={"host": asked}).status_code == status


def test_pages_from_elsewhere_cannot_ask(client: TestClient) -> None:
    body = {"session": "book", "question": "a", "max_new_tokens": 1}
    for origin in ("http://evil.example", "http://127.0.0.1:9", "http://[", "null"):
        refused = client.post("/api/v1/ask", json=body, headers={"origin": origin})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "wrong_origin")
    assert client.post("/api/v1/ask", json=body, headers={"origin": "http://127.0.0.1:8321"}).status_code == 200


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_has_the_headers_that_keep_a_page_safe(
    client: TestClient, stranger: TestClient, path: str
) -> None:
    for answer in (client.get(path), stranger.get(path)):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert not any(name.startswith("access-control") for name in answer.headers)


def test_the_page_has_nothing_inline_and_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/").text
    assert "<style" not in page
    assert " style=" not in page
    assert " on" not in "".join(part for part in page.split("<")[1:] if part.startswith("button"))
    for name, kind in FILES.items():
        answer = client.get(f"/{'' if name == 'index.html' else name}")
        assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
        assert "://" not in answer.text
        assert "innerHTML" not in answer.text
        if name != "index.html":
            assert f'"{name}"' in page


def test_other_methods_and_paths_are_told_apart(client: TestClient) -> None:
    assert client.post("/api/v1/memory").status_code == 405
    answer = client.get("/api/v1/nothing")
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "invalid_request_error")


def test_tokens_are_new_each_time_and_chosen_ones_are_long() -> None:
    assert len({new_token() for _ in range(5)}) == 5
    assert check_token(new_token())
    for short in ("", "abc", "fifteen-chars-x", "sixteen chars xx", "sixteen-chars-ä-x"):
        with pytest.raises(ConfigError, match="at least 16 ASCII"):
            check_token(short)


def test_loopback_is_what_no_other_machine_reaches() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.3.2.1", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.0.2.7", "example.org", "")))
