"""Namespaces, sessions and rows of a batch never see each other's chunks, whatever they are called."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import random_tokens, tiny_model

import memcore
from memcore import MemoryConfig, Session
from memcore.bank import MemoryBank
from memcore.chunk import ChunkBatch
from memcore.errors import ReadOnlyError, UnknownChunkError, UnknownNamespaceError
from memcore.session_store import SessionInfo, SessionStore, layer_namespace
from memcore.testing import assert_same_chunks, make_chunks, random_queries, select
from memcore.testing.names import ODD_NAMES
from reliability.opening import INSTALLED, open_bank, options_of

CONFIG = MemoryConfig(window=32, sinks=2, chunk_size=4, top_k=3, query_tokens=4, question_tokens=4)
SEPARATORS = (
    "session/a",
    "session/a/layer0",
    "session/a/layer0/layer0",
    "session/a/layer1",
    "session/a/layer10",
    "session/a/layer\u0661",  # a digit, too
    "session/",
    "session//layer0",
    "session-state/a",
    "session-copy/a",
    "usage/a",
    "usage/session/a/layer0",
    "a/layer0",
    "/layer0",
    "layer0",
    "~",
    "~a",
    "~a~1",
    "~~a~1~1",
    "~row0/layer0",
    "\ud800",
    "\u1e9b\u0323",
    "\u017f\u0323\u0307",
    "a' OR '1'='1",
    "../session/a",
)
NAMES = st.one_of(
    st.sampled_from([*ODD_NAMES, *SEPARATORS]),
    st.text(max_size=12),
    st.builds(str.__add__, st.sampled_from(SEPARATORS), st.text(alphabet="~/a0\0.", max_size=3)),
)
SESSIONS = st.lists(NAMES.filter(bool), min_size=2, max_size=5, unique=True)
FEW = settings(
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

on_every_backend = pytest.mark.parametrize("backend", INSTALLED)


class Expected:
    """What a bank should hold: chunks by id in each namespace, and the next id."""

    def __init__(self) -> None:
        self.chunks: dict[str, dict[int, ChunkBatch]] = {}
        self.next_ids: dict[str, int] = {}

    def check(self, bank: MemoryBank) -> None:
        """See that the bank holds this and nothing else, and that no namespace finds or fetches what is another's."""
        assert bank.namespaces() == sorted(self.chunks)
        everywhere = {id_ for held in self.chunks.values() for id_ in held}
        for name, held in self.chunks.items():
            assert bank.ids(name).tolist() == sorted(held)
            for id_ in everywhere - held.keys():
                with pytest.raises(UnknownChunkError):
                    bank.fetch(name, torch.tensor([id_]))
            for top_k in (2, 100):
                found = bank.retrieve(name, random_queries(2), top_k)
                assert (found is None) == (not held)
                if found is not None:
                    assert len(found) == min(top_k, len(held))
                    for place, id_ in enumerate(found.ids.tolist()):
                        assert_same_chunks(select(found.chunks, slice(place, place + 1)), held[id_])


def act(bank: MemoryBank, expected: Expected, names: list[str], choice: random.Random) -> None:
    """Do something at random to one namespace, or to two."""
    name, other = choice.choice(names), choice.choice(names)
    held = expected.chunks.get(name)
    kind = choice.randrange(10)
    if kind < 5 or held is None:
        seed = choice.randrange(1 << 30)
        chunks = make_chunks(choice.randrange(1, 4), seed=seed, start=seed)
        ids = bank.store(name, chunks).tolist()
        first = expected.next_ids.get(name, 0)
        assert ids == list(range(first, first + len(chunks)))
        expected.next_ids[name] = first + len(ids)
        expected.chunks.setdefault(name, {}).update(
            {id_: select(chunks, slice(place, place + 1)) for place, id_ in enumerate(ids)}
        )
    elif kind == 5:
        bank.drop(name)
        del expected.chunks[name], expected.next_ids[name]
    elif kind == 6:
        bank.fork(name, other)
        expected.chunks[other], expected.next_ids[other] = dict(held), expected.next_ids[name]
    elif kind == 7 and held:
        cut = choice.choice(sorted(held))
        bank.truncate(name, cut)
        expected.chunks[name] = {id_: chunk for id_, chunk in held.items() if id_ < cut}
        expected.next_ids[name] = cut
    elif kind == 8:
        bank.flush()
    else:
        bank.retrieve(name, random_queries(1, seed=choice.randrange(100)), 2)


@on_every_backend
@FEW
@given(names=st.lists(NAMES, min_size=2, max_size=5, unique=True), seed=st.integers(0, 2**32))
def test_namespaces_are_apart_in_any_order_of_calls(backend: str, names: list[str], seed: int) -> None:
    with TemporaryDirectory() as folder:
        choice, expected = random.Random(seed), Expected()
        bank = open_bank(backend, Path(folder))
        for _ in range(14):
            act(bank, expected, names, choice)
        expected.check(bank)
        bank.flush()
        expected.check(bank)
        bank.close()
        if bank.persistent is not None:
            again, kept = open_bank(backend, Path(folder)), Expected()
            kept.chunks = {name: held for name, held in expected.chunks.items() if not name.startswith("~")}
            kept.check(again)
            assert [again.next_id(name) for name in kept.chunks] == [expected.next_ids[name] for name in kept.chunks]
            again.close()


def store_session(store: SessionStore, name: str, seed: int) -> SessionInfo:
    """Make a session with chunks in two layers, as reading would."""
    info = SessionInfo(name=name, tokens=seed, next_ids={"0": 3, "1": 3})
    for layer in info.next_ids:
        store.bank.store(info.namespace(layer), make_chunks(3, seed=seed, start=100 * int(layer)))
    store.save(info, {"payload": torch.full((3,), seed)})
    return info


def check_session(store: SessionStore, name: str, seed: int) -> None:
    info, state = store.load(name)
    assert (info.name, info.tokens, state["payload"].tolist()) == (name, seed, [seed] * 3)
    for layer in info.next_ids:
        want = make_chunks(3, seed=seed, start=100 * int(layer))
        assert_same_chunks(store.bank.fetch(info.namespace(layer), torch.arange(3)), want)


@on_every_backend
@FEW
@given(names=SESSIONS, data=st.data())
def test_sessions_are_apart_whatever_they_are_called(backend: str, names: list[str], data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        bank = open_bank(backend, Path(folder))
        store = SessionStore(bank)
        for seed, name in enumerate(names):
            store_session(store, name, seed)
        assert store.names() == sorted(names)
        left = dict(zip(names, range(len(names)), strict=True))
        dropped = data.draw(st.sampled_from(names))
        store.drop(dropped)
        del left[dropped]
        source = data.draw(st.sampled_from(sorted(left)))
        store.copy(source, dropped)
        left[dropped] = left[source]
        gone = data.draw(st.sampled_from(sorted(left)))
        store.drop(gone)
        del left[gone]
        if bank.persistent is not None:
            bank.close()
            bank = open_bank(backend, Path(folder))
            store = SessionStore(bank)
        assert store.names() == sorted(left)
        for name, seed in left.items():
            check_session(store, name, seed)
        assert bank.namespaces() == sorted(layer_namespace(f"session/{name}", n) for name in left for n in (0, 1))
        bank.close()


@given(one=st.tuples(NAMES.filter(bool), st.integers(0, 200)), other=st.tuples(NAMES.filter(bool), st.integers(0, 200)))
@settings(max_examples=100, deadline=None, database=None)
def test_no_two_layers_of_sessions_share_a_namespace(one: tuple[str, int], other: tuple[str, int]) -> None:
    spaces = [SessionInfo(name=name).namespace(layer) for name, layer in (one, other)]
    assert (spaces[0] == spaces[1]) == (one == other)
    assert not any(space.startswith("~") for space in spaces)


def wrapped(backend: str, path: Path, **options: Any) -> Any:
    config = attrs.evolve(CONFIG, backend=backend, backend_options={**options_of(backend, path), **options})
    return memcore.wrap(tiny_model("llama"), config)


@on_every_backend
def test_rows_of_a_batch_hold_their_own_tokens_only(backend: str, tmp_path: Path) -> None:
    """Tokens of one row are from one half of the vocabulary, the other's from the rest, at the same positions."""
    model = wrapped(backend, tmp_path)
    bank = model.memory.bank
    own = (range(3, 50), range(50, 97))
    rows = torch.stack([random_tokens(150, seed=seed) % 47 + low.start for seed, low in enumerate(own)])
    with torch.no_grad():
        cache = model(rows, use_cache=True).past_key_values
        other = model(rows.flip(0)[:, :120], use_cache=True).past_key_values
        alone = model(rows[:1], use_cache=True).logits
        together = model(rows, use_cache=True).logits
        again = model(rows[:, :5], past_key_values=cache, use_cache=True).past_key_values
    torch.testing.assert_close(together[:1], alone)
    for held, order in ((again, own), (other, own[::-1])):
        for row, (name, low) in enumerate(zip(held.row_names, order, strict=True)):
            for layer in held.memory_layers:
                chunks = bank.fetch(layer.setup.namespace(name), bank.ids(layer.setup.namespace(name)))
                assert len(chunks)
                assert set(chunks.token_ids.flatten().tolist()) <= set(low)
            assert {token for found in model.memory.passages(held, row) for token in found.token_ids.tolist()} <= {*low}
    assert len({*again.row_names, *other.row_names}) == 4
    memcore.unwrap(model)


@on_every_backend
def test_sessions_with_confusing_names_answer_as_each_does_alone(backend: str, tmp_path: Path) -> None:
    names = ("a", "a/layer0", "../a", "a\0", "é", "e\u0301")
    texts = [random_tokens(1, 100, seed=seed) for seed in range(len(names))]
    question = random_tokens(1, 6, seed=50)

    def logits(model: Any, name: str) -> torch.Tensor:
        with torch.no_grad():
            result: torch.Tensor = model(question, past_key_values=Session(model, name).cache(), use_cache=True).logits
        return result

    model = wrapped(backend, tmp_path / "together")
    for begin, end in ((0, 60), (60, 100)):  # a piece of each in turn
        for name, text in zip(names, texts, strict=True):
            Session(model, name).ingest(text[:, begin:end])
    for place, (name, text) in enumerate(zip(names, texts, strict=True)):
        alone = wrapped(backend, tmp_path / str(place))
        for begin, end in ((0, 60), (60, 100)):
            Session(alone, "only").ingest(text[:, begin:end])
        assert torch.equal(logits(model, name), logits(alone, "only"))
        memcore.unwrap(alone)
    memcore.unwrap(model)


def test_a_read_only_handle_cannot_write(tmp_path: Path) -> None:
    pytest.importorskip("lmdb")
    bank = open_bank("lmdb", tmp_path)
    store_session(SessionStore(bank), "a", 1)
    bank.close()
    (file,) = tmp_path.glob("memory-*.lmdb")
    content = file.read_bytes()
    reader = open_bank("lmdb", tmp_path, read_only=True)
    store, backend = SessionStore(reader), reader.persistent
    assert backend is not None
    space, ids = store.info("a").namespace(0), torch.arange(3)
    usage, chunks = reader.usage(space), make_chunks(3, seed=5)
    calls: list[Callable[[], object]] = [
        lambda: reader.store(space, chunks),
        lambda: reader.store("new", chunks),
        lambda: reader.fork(space, "new"),
        lambda: reader.restore(space, chunks, usage, 3),
        lambda: reader.truncate(space, 0),
        lambda: reader.drop(space),
        lambda: backend.store(space, chunks),
        lambda: backend.evict(space, ids),
        lambda: backend.drop(space),
        lambda: backend.copy(space, "new"),
        lambda: backend.write_record("session/a", b""),
        lambda: backend.drop_record("session/a"),
        backend.compact,
        lambda: store.save(store.info("a"), {}),
        lambda: store.copy("a", "b"),
        lambda: store.drop("a"),
    ]
    for call in calls:
        with pytest.raises(ReadOnlyError):
            call()
    reader.fork(space, "~own")
    reader.store("~own", chunks)
    assert reader.count("~own") == 6
    reader.retrieve(space, random_queries(1), 1)
    reader.flush()
    check_session(store, "a", 1)
    reader.close()
    assert file.read_bytes() == content


def marked(mark: bytes) -> ChunkBatch:
    """Return chunks whose embeddings, keys, values and token ids are all this mark of 32 bytes, again and again."""
    numbers = torch.frombuffer(bytearray(mark), dtype=torch.float32)
    tokens = torch.frombuffer(bytearray(mark), dtype=torch.int64)
    return ChunkBatch(
        embeddings=numbers.expand(40, 2, 8),
        keys=numbers.expand(40, 2, 4, 8),
        values=numbers.expand(40, 2, 4, 8),
        starts=torch.arange(0, 160, 4),
        lengths=torch.full((40,), 4),
        token_ids=tokens.expand(40, 4),
    )


@pytest.mark.parametrize("copied", [False, True], ids=["alone", "copied"])
def test_a_session_that_was_dropped_leaves_no_byte_in_the_compacted_file(tmp_path: Path, copied: bool) -> None:
    pytest.importorskip("lmdb")
    choice = random.Random(1)
    secret, kept = (bytes(choice.randrange(33, 58) for _ in range(32)) for _ in range(2))
    bank = open_bank("lmdb", tmp_path)
    store = SessionStore(bank)
    for name, mark in (("the secret one", secret), ("the other", kept)):
        info = SessionInfo(name=name, next_ids={"0": 40})
        bank.store(info.namespace(0), marked(mark))
        store.save(info, {"tokens": torch.frombuffer(bytearray(mark * 9), dtype=torch.uint8)})
    if copied:
        store.copy("the secret one", "a copy of the secret one")
        store.drop("a copy of the secret one")

    def content() -> bytes:
        return b"".join(path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file())

    before = content()
    assert before.count(secret) > 40
    assert b"the secret one" in before
    store.drop("the secret one")
    backend = bank.persistent
    assert backend is not None
    backend.compact()
    for closed in (False, True):
        if closed:
            bank.close()
        after = content()
        for part in (secret, secret[:8], secret[-8:], b"the secret one"):
            assert after.count(part) == 0
        assert after.count(kept) > 40


@on_every_backend
def test_what_was_dropped_cannot_be_asked_for(backend: str, tmp_path: Path) -> None:
    bank = open_bank(backend, tmp_path)
    bank.store("a", make_chunks(3))
    bank.store("b", make_chunks(2, seed=1))
    bank.drop("a")
    for ids in (torch.arange(3), torch.zeros(0, dtype=torch.int64)):
        with pytest.raises(UnknownNamespaceError):
            bank.fetch("a", ids)
    bank.store("a", make_chunks(1, seed=2))
    with pytest.raises(UnknownChunkError):
        bank.fetch("a", torch.tensor([2]))
    assert_same_chunks(bank.fetch("a", torch.tensor([0])), make_chunks(1, seed=2))
    bank.close()
