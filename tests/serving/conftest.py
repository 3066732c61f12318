"""A served model with sessions, as an application and on a real socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from serving_memory import served
from starlette.testclient import TestClient

from memcore.serving.app import Application
from memcore.serving.run import address, listening, serve
from memcore.serving.served_model import ServedModel
from memcore.serving.tokenizers import Tokenizers
from memcore.session_contents import SessionContents

HERE = "http://127.0.0.1:8321"


@pytest.fixture(scope="session")
def model() -> ServedModel:
    """A tiny model that has read two texts."""
    return served()


@pytest.fixture(scope="session")
def token() -> str:
    return "a-token-that-is-long-enough"


@pytest.fixture(scope="session")
def contents(model: ServedModel) -> SessionContents:
    return SessionContents(model.memory.sessions, Tokenizers(model.tokenizer))


@pytest.fixture
def app(model: ServedModel, contents: SessionContents, token: str) -> Any:
    return Application(contents, model, token=token, path="a/memory")


@pytest.fixture
def stranger(app: Any) -> Iterator[TestClient]:
    """A client that knows no token."""
    with TestClient(app, base_url=HERE) as client:
        yield client


@pytest.fixture
def client(app: Any, token: str) -> Iterator[TestClient]:
    with TestClient(app, base_url=HERE, headers={"authorization": f"Bearer {token}"}) as client:
        yield client


@pytest.fixture(scope="session")
def url(model: ServedModel, contents: SessionContents, token: str) -> Iterator[str]:
    """Where the application is served by uvicorn, with its token."""
    listener = listening("127.0.0.1", 0)
    where = address("127.0.0.1", listener, token)
    servers: list[Any] = []
    app = Application(contents, model, token=token, path="a/memory")
    thread = threading.Thread(target=serve, args=(app, listener), kwargs={"begun": servers.append})
    thread.start()
    while not (servers and servers[0].started):
        assert thread.is_alive()
        time.sleep(0.01)
    yield where
    servers[0].should_exit = True
    thread.join(timeout=30)
    assert not thread.is_alive()
