"""Named sessions on a tiny model, with every backend that is here."""

from __future__ import annotations

import copy
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from reliability.forking import Forker, forker
from tiny_models import random_tokens, tiny_model
from transformers import GenerationConfig

import memcore
from memcore import MemoryConfig, Session
from memcore.errors import (
    BackendError,
    ConfigError,
    CorruptedError,
    NotWrappedError,
    ReadOnlyError,
    SessionError,
    SessionMismatchError,
    UnknownSessionError,
    UnsupportedInputError,
)
from memcore.plugins import registry

CONFIG = MemoryConfig(window=32, sinks=2, chunk_size=4, top_k=3, query_tokens=4, question_tokens=4)
IDS = random_tokens(1, 300, seed=1)
QUESTION = random_tokens(1, 6, seed=2)
FAMILIES = ["llama", "gemma3_text"]


def wrapped(family: str = "llama", config: MemoryConfig = CONFIG, **options: Any) -> Any:
    return memcore.wrap(tiny_model(family), attrs.evolve(config, **options))


def on_disk(path: Path, **options: Any) -> dict[str, Any]:
    pytest.importorskip("lmdb", reason="lmdb is not installed")
    return {"backend": "lmdb", "backend_options": {"path": str(path), **options}}


@torch.no_grad()
def logits_after(model: Any, session: Session) -> torch.Tensor:
    logits: torch.Tensor = model(QUESTION, past_key_values=session.cache(), use_cache=True).logits
    return logits


def read(model: Any, name: str = "book", **options: Any) -> Session:
    session = Session(model, name)
    session.ingest(IDS, **options)
    return session


def interrupted_at(session: Session, tokens: int, **options: Any) -> None:
    def stop(done: int, _: int) -> None:
        if done >= tokens:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.ingest(IDS, progress=stop, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_session_knows_what_one_forward_leaves(family: str) -> None:
    model = wrapped(family)
    with torch.no_grad():
        with model.memory.reading(question=False):
            cache = model(IDS, use_cache=True).past_key_values
        # With gradients a single token's attention is computed in another order, and rounds otherwise.
        expected = model(QUESTION, past_key_values=cache, use_cache=True).logits
    session = read(model, checkpoint_tokens=64)
    assert session.tokens == 300
    assert repr(session) == "Session('book', tokens=300)"
    assert torch.equal(session.token_ids(), IDS)
    assert torch.equal(logits_after(model, session), expected)


@pytest.mark.parametrize("fails", ["memcore.memory.SessionStore", "memcore_adapters.decoder.pin"])
def test_a_memory_that_could_not_be_opened_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def fail(*_: object) -> None:
        raise BackendError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(fails, fail)
        with pytest.raises(BackendError, match="full") as kept:  # and its traceback, which keeps all locals
            wrapped(**on_disk(tmp_path))
    read(wrapped(**on_disk(tmp_path)))
    assert "full" in str(kept.value)


def test_asking_leaves_a_session_as_it_is() -> None:
    model = wrapped()
    session = read(model)
    first = session.ask(QUESTION, max_new_tokens=40)
    assert first.token_ids.shape == (40,)
    assert first.text == ""
    count = {name: model.memory.bank.count(name) for name in model.memory.bank.namespaces()}
    assert torch.equal(session.ask(QUESTION, max_new_tokens=40).token_ids, first.token_ids)
    assert {name: model.memory.bank.count(name) for name in model.memory.bank.namespaces()} == count


def test_a_session_generates_what_generate_does() -> None:
    model = wrapped()
    session = read(model)
    prompt = torch.cat((session.token_ids(), QUESTION), dim=1)
    expected = model.generate(prompt, past_key_values=session.cache(), max_new_tokens=10, do_sample=False)
    assert torch.equal(session.ask(QUESTION, max_new_tokens=10).token_ids, expected[0, prompt.shape[1] :])
    torch.manual_seed(0)
    assert len(session.ask(QUESTION, max_new_tokens=5, do_sample=True, temperature=2.0).token_ids) == 5


def test_beams_share_what_was_read() -> None:
    plain = tiny_model("llama")
    prompt = torch.cat((IDS, QUESTION), dim=1)
    expected = plain.generate(prompt, max_new_tokens=10, num_beams=3, do_sample=False)[0, 306:]
    session = read(wrapped(window=400))
    assert torch.equal(session.ask(QUESTION, max_new_tokens=10, num_beams=3).token_ids, expected)
    model = wrapped()
    session = read(model)
    beams = session.ask(QUESTION, max_new_tokens=50, num_beams=3, return_dict_in_generate=True)
    assert beams.token_ids.shape == (50,)
    assert not [name for name in model.memory.bank.namespaces() if name.startswith("~")]


def test_what_is_asked_for_in_a_generation_config_is_done() -> None:
    session = read(wrapped())
    sampled = GenerationConfig(do_sample=True, temperature=5.0, max_new_tokens=8)
    answers = {tuple(session.ask(QUESTION, generation_config=sampled).token_ids.tolist()) for _ in range(3)}
    assert len(answers) == 3


def test_a_second_text_follows_the_first() -> None:
    model = wrapped()
    session = Session(model, "two")
    session.ingest(IDS[0, :100])
    session.ingest(IDS[0, 100:].tolist())
    assert torch.equal(session.token_ids(), IDS)
    assert {passage.start for passage in session.ask(QUESTION, max_new_tokens=2).passages} <= set(range(300))


def test_sessions_are_apart() -> None:
    model = wrapped()
    one = read(model, "one")
    expected = logits_after(model, one)
    two = Session(model, "one/layer0")
    two.ingest(random_tokens(1, 200, seed=9))
    model(random_tokens(1, 200, seed=8))
    assert torch.equal(logits_after(model, one), expected)
    model.memory.sessions.drop("one/layer0")
    assert torch.equal(logits_after(model, one), expected)


@pytest.mark.parametrize("disk", [False, True], ids=["exact", "lmdb"])
@pytest.mark.parametrize("at", [1, 40, 200])
def test_an_interrupted_text_is_read_on_where_it_stopped(tmp_path: Path, at: int, disk: bool) -> None:
    options = on_disk(tmp_path / "memory") if disk else {}
    model = wrapped(**options)
    expected = logits_after(model, read(model, "whole"))
    ids = {index: model.memory.bank.ids(f"session/whole/layer{index}").tolist() for index in range(2)}
    session = Session(model, "parts")
    interrupted_at(session, at, checkpoint_tokens=64)
    assert session.info.unfinished is not None or session.tokens == 0
    assert session.tokens < 300
    session.ingest(IDS, checkpoint_tokens=64)
    assert session.info.unfinished is None
    assert torch.equal(logits_after(model, session), expected)
    # Chunk n is the nth of the text, as who looks into a session takes it to be.
    assert {index: model.memory.bank.ids(f"session/parts/layer{index}").tolist() for index in range(2)} == ids
    memcore.unwrap(model)


def test_an_unfinished_text_must_be_finished_first() -> None:
    session = Session(wrapped(), "book")
    interrupted_at(session, 200, checkpoint_tokens=64)
    with pytest.raises(SessionError, match="of the 300 tokens of another text"):
        session.ingest(IDS[:, :200])
    assert session.info.unfinished is not None


def test_a_session_is_listed_copied_and_dropped() -> None:
    model = wrapped()
    sessions = model.memory.sessions
    session = read(model)
    sessions.copy("book", "copy")
    assert sessions.names() == ["book", "copy"]
    assert [info.tokens for info in sessions.infos()] == [300, 300]
    copied = Session(model, "copy")
    assert torch.equal(logits_after(model, copied), logits_after(model, session))
    copied.ingest(QUESTION)
    assert (copied.tokens, session.tokens) == (306, 300)
    sessions.drop("book")
    assert sessions.names() == ["copy"]
    assert copied.ask(QUESTION, max_new_tokens=2).token_ids.numel() == 2
    sessions.drop("copy")
    assert model.memory.bank.namespaces() == []
    assert model.memory.bank.nbytes() == 0


def test_names_that_are_taken_or_unknown_are_refused() -> None:
    model = wrapped()
    read(model, "book")
    Session(model, "other")
    with pytest.raises(SessionError, match="'other' already"):
        model.memory.sessions.copy("book", "other")
    with pytest.raises(UnknownSessionError, match="'bok', did you mean 'book'"):
        Session(model, "bok", create=False)
    with pytest.raises(UnknownSessionError, match="'nothing'"):
        model.memory.sessions.drop("nothing")
    for bad in ("", 3):
        with pytest.raises(ConfigError, match="name"):
            Session(model, bad)  # type: ignore[arg-type]


def test_a_session_of_another_model_or_configuration_is_refused(tmp_path: Path) -> None:
    options = on_disk(tmp_path / "memory")
    model = wrapped(**options)
    read(model)
    memcore.unwrap(model)
    others: list[tuple[Any, str]] = [
        (lambda: memcore.wrap(tiny_model("llama", seed=5), attrs.evolve(CONFIG, **options)), "made with model"),
        (lambda: memcore.wrap(tiny_model("llama").double(), attrs.evolve(CONFIG, **options)), "dtype"),
        (lambda: wrapped(**options, chunk_size=8), r"chunk_size = 4 \(int\), not 8"),
        (lambda: wrapped(**options, embedder="mean"), "embedder = 'subblock'"),
    ]
    for other, says in others:
        model = other()
        with pytest.raises(SessionMismatchError, match=says):
            Session(model, "book")
        memcore.unwrap(model)
    model = wrapped(**options, top_k=2, retrieve_every=1)
    assert Session(model, "book").tokens == 300
    memcore.unwrap(model)


def test_nonsense_is_refused() -> None:
    with pytest.raises(NotWrappedError, match="wrap"):
        Session(tiny_model("llama"), "book")
    session = Session(wrapped(), "book")
    with pytest.raises(SessionError, match="nothing yet"):
        session.ask(QUESTION)
    with pytest.raises(UnsupportedInputError, match="num_return_sequences=2"):
        read(wrapped()).ask(QUESTION, num_return_sequences=2)
    for bad, says in (
        ("a text", "without a tokenizer"),
        (Path("nowhere.txt"), "nowhere.txt"),
        (" ", "empty"),
        ([], "no token ids"),
        ([0.5], "integers"),
        (torch.zeros(2, 2, dtype=torch.long), r"\[T\] or \[1, T\]"),
        (object(), "token ids"),
    ):
        with pytest.raises(UnsupportedInputError, match=says):
            session.ingest(bad)  # type: ignore[arg-type]
    assert session.tokens == 0


def test_a_handle_that_is_behind_is_refused() -> None:
    model = wrapped()
    one, two = Session(model, "book"), Session(model, "book")
    one.ingest(IDS)
    for late in (lambda: two.ingest(IDS), lambda: two.ask(QUESTION), two.cache):
        with pytest.raises(SessionError, match="another handle"):
            late()
    model.memory.sessions.drop("book")
    with pytest.raises(UnknownSessionError):
        one.ask(QUESTION)


def test_nothing_is_left_of_a_session_that_was_interrupted_and_dropped(tmp_path: Path) -> None:
    model = wrapped(**on_disk(tmp_path / "memory"))
    interrupted_at(Session(model, "book"), 200)
    model.memory.sessions.drop("book")
    assert model.memory.bank.namespaces() == []
    assert model.memory.bank.backend.record_names() == []
    memcore.unwrap(model)


@pytest.mark.parametrize("write_buffer", [0, 1 << 28])
def test_a_reader_shows_the_checkpoint_it_opened(tmp_path: Path, write_buffer: int) -> None:
    """Also if the writer has committed chunks since, and whatever another handle of the reader looks at."""
    writer = wrapped(**on_disk(tmp_path / "memory", write_buffer=write_buffer))
    session = read(writer)
    expected = logits_after(writer, session)
    reader = wrapped(**on_disk(tmp_path / "memory", read_only=True))
    opened: list[Session] = []

    def open_it(done: int, _: int) -> None:
        if done > 100 and not opened:
            opened.append(Session(reader, "book"))

    session.ingest(random_tokens(1, 200, seed=3), progress=open_it)
    early, late = opened[0], Session(reader, "book")
    assert (early.tokens, late.tokens) == (300, 500)
    assert torch.equal(logits_after(reader, early), expected)
    assert torch.equal(logits_after(reader, late), logits_after(writer, session))
    memcore.unwrap(reader)
    memcore.unwrap(writer)


def test_a_reader_does_without_what_the_writer_forgot(tmp_path: Path) -> None:
    writer = wrapped(capacity=160, **on_disk(tmp_path / "memory"))
    session = read(writer)
    reader = wrapped(capacity=160, **on_disk(tmp_path / "memory", read_only=True))
    early = Session(reader, "book")
    session.ingest(random_tokens(1, 600, seed=3))
    assert early.ask(QUESTION, max_new_tokens=40).token_ids.shape == (40,)
    memcore.unwrap(reader)
    memcore.unwrap(writer)


def test_a_crash_between_state_and_info_loses_neither(tmp_path: Path) -> None:
    model = wrapped(**on_disk(tmp_path / "memory"))
    backend = model.memory.bank.backend
    session = Session(model, "book")
    before = backend.read_record("session/book")
    session.ingest(IDS)
    expected = logits_after(model, session)
    backend.write_record("session/book", before)
    memcore.unwrap(model)
    model = wrapped(**on_disk(tmp_path / "memory"))
    session = Session(model, "book")
    assert session.tokens == 300
    assert torch.equal(logits_after(model, session), expected)
    session.ingest(QUESTION)
    memcore.unwrap(model)


def test_a_model_with_a_memory_on_disk_cannot_be_copied(tmp_path: Path) -> None:
    model = wrapped(**on_disk(tmp_path / "memory"))
    with pytest.raises(BackendError, match="path of its own"):
        copy.deepcopy(model)
    memcore.unwrap(model)


def test_a_wrap_that_fails_leaves_nothing_locked(tmp_path: Path, plugin_folder: Any) -> None:
    plugin_folder("bad", BAD_EMBEDDER)
    options = on_disk(tmp_path / "memory")
    registry.cache_clear()
    try:
        with pytest.raises(RuntimeError, match="no such model"):
            wrapped(embedder="bad", **options)
    finally:
        registry.cache_clear()
    memcore.unwrap(wrapped(**options))


def test_a_memory_that_cannot_be_written_stays_until_it_can(tmp_path: Path) -> None:
    model = wrapped(**on_disk(tmp_path / "memory", max_map_size=1 << 20, map_size=1 << 20))
    with pytest.raises(BackendError, match="full"):
        Session(model, "book").ingest(random_tokens(1, 3000, seed=3))
    with pytest.raises(BackendError, match="full"):
        memcore.unwrap(model)
    assert not model.memory.bank.closed
    assert model.memory.sessions.names() == ["book"]
    model.memory.bank.truncate("session/book/layer0", 0)
    model.memory.bank.truncate("session/book/layer1", 0)
    memcore.unwrap(model)
    assert not hasattr(model, "memory")


BAD_EMBEDDER = """
import memcore
from memcore.embedders import MeanKey
class Bad(MeanKey):
    def __init__(self, options):
        raise RuntimeError("no such model")
@memcore.hookimpl
def memcore_embedders():
    return [memcore.Component(name="bad", summary="Fails.", load=lambda: Bad)]
"""


def go_on(family: str, folder: str, action: str) -> None:
    """Read the text, or what is left of it, and ask, in another process; write down what came of it."""
    torch.set_num_threads(1)
    model = wrapped(family, **on_disk(Path(folder), **({"read_only": True} if action == "ask" else {})))

    def die(done: int, _: int) -> None:
        if done >= 200:
            os.kill(os.getpid(), signal.SIGKILL)

    session = Session(model, "book")
    if action != "ask":
        session.ingest(IDS, progress=die if action == "die" else None, checkpoint_tokens=64)
    Path(folder).with_suffix(".json").write_text(json.dumps(answers(model, session)))
    memcore.unwrap(model)


def answers(model: Any, session: Session) -> list[Any]:
    logits = logits_after(model, session).view(torch.int32).tolist()
    return [logits, session.ask(QUESTION, max_new_tokens=30).token_ids.tolist(), session.tokens]


@pytest.fixture(scope="module")
def another() -> Iterator[Forker]:
    if os.name != "posix":
        pytest.skip("needs fork and SIGKILL")
    with forker("test_session", folder=str(Path(__file__).parent)) as started:
        yield started


def in_another_process(another: Forker, family: str, folder: Path, action: str) -> Any:
    another.do("test_session:go_on", family=family, folder=str(folder), action=action)
    return json.loads(folder.with_suffix(".json").read_text())


@pytest.mark.parametrize("family", FAMILIES)
def test_another_process_goes_on_bit_for_bit(tmp_path: Path, another: Forker, family: str) -> None:
    on_disk(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = wrapped(family)
        expected = answers(model, read(model))
    finally:
        torch.set_num_threads(threads)
    assert expected[2] == 300
    assert in_another_process(another, family, tmp_path / "memory", "ingest") == expected
    assert in_another_process(another, family, tmp_path / "memory", "ask") == expected


def test_a_killed_process_loses_nothing_that_was_checked_in(tmp_path: Path, another: Forker) -> None:
    on_disk(tmp_path)
    expected = in_another_process(another, "llama", tmp_path / "whole", "ingest")
    killed = another.start("test_session:go_on", family="llama", folder=str(tmp_path / "killed"), action="die")
    killed.end()
    assert killed.status == -signal.SIGKILL
    assert in_another_process(another, "llama", tmp_path / "killed", "ingest") == expected


def test_a_read_only_session_answers_and_cannot_read_on(tmp_path: Path) -> None:
    model = wrapped(**on_disk(tmp_path / "memory"))
    expected = logits_after(model, read(model))
    memcore.unwrap(model)
    model = wrapped(**on_disk(tmp_path / "memory", read_only=True))
    session = Session(model, "book")
    assert torch.equal(logits_after(model, session), expected)
    assert session.ask(QUESTION, max_new_tokens=40).token_ids.numel() == 40
    assert model(IDS).logits.shape[1] == 300
    for change in (
        lambda: session.ingest(QUESTION),
        lambda: model.memory.sessions.drop("book"),
        lambda: model.memory.sessions.copy("book", "copy"),
    ):
        with pytest.raises(ReadOnlyError):
            change()
    with pytest.raises(UnknownSessionError):
        Session(model, "new")
    memcore.unwrap(model)


def test_a_session_with_a_broken_record_says_so(tmp_path: Path) -> None:
    model = wrapped(**on_disk(tmp_path / "memory"))
    read(model)
    model.memory.bank.backend.write_record("session-state/book", b"\0\1")
    with pytest.raises(CorruptedError, match="'book'"):
        Session(model, "book")
    model.memory.bank.backend.write_record("session/book", b"[1]")
    with pytest.raises(CorruptedError, match="'book'"):
        Session(model, "book")
    memcore.unwrap(model)
