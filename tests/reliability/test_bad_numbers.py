"""Numbers that nothing good can be done with: what is asked for is right, or refused, and then nothing has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from tiny_models import random_tokens, tiny_model

import memcore
from memcore import MemoryConfig, Session
from memcore.bank import MemoryBank
from memcore.chunk import ChunkBatch
from memcore.errors import BackendError, ChunkShapeError, MemcoreError
from memcore.testing import assert_same_chunks, make_chunks, random_queries, select
from reliability.opening import INSTALLED, open_bank, options_of

CONFIG = MemoryConfig(window=32, sinks=2, chunk_size=4, top_k=3, query_tokens=4, question_tokens=4)
TEXT = random_tokens(1, 160, seed=1)
NAN = float("nan")
INFINITE = float("inf")
LARGEST = 2**63 - 1

pytestmark = pytest.mark.parametrize("name", INSTALLED)


@pytest.fixture
def bank(name: str, tmp_path: Path) -> Iterator[MemoryBank]:
    """A bank with six chunks in ``"a"``, and a fork of them in ``"fork"``."""
    bank = open_bank(name, tmp_path)
    bank.store("a", make_chunks(6))
    bank.fork("a", "fork")
    yield bank
    bank.close()


def facts(bank: MemoryBank) -> dict[str, list[object]]:
    """Return all that can be asked of a bank, tensors as lists, without counting a use."""
    found: dict[str, list[object]] = {"": [bank.nbytes()]}
    for name in bank.namespaces():
        usage = bank.usage(name)
        chunks = bank.fetch(name, usage.ids)
        bank.fork(name, "~look")
        seen = bank.retrieve("~look", random_queries(3, size=chunks.embeddings.shape[2]), 4)
        bank.drop("~look")
        found[name] = [
            *(tensor.tolist() for tensor in attrs.asdict(usage, recurse=False).values()),
            *(tensor.tolist() for tensor in attrs.asdict(chunks, recurse=False).values()),
            bank.next_id(name),
            [] if seen is None else seen.ids.tolist(),
        ]
    return found


def with_bad(chunks: ChunkBatch, number: float) -> ChunkBatch:
    """Return a copy with one number of the last embedding replaced."""
    embeddings = chunks.embeddings.clone()
    embeddings[-1, -1, -1] = number
    return attrs.evolve(chunks, embeddings=embeddings)


REFUSED: dict[str, Callable[[], ChunkBatch]] = {
    "NaN": lambda: with_bad(make_chunks(3, seed=1), NAN),
    "infinite": lambda: with_bad(make_chunks(3, seed=1), -INFINITE),
    "other embeddings": lambda: make_chunks(3, size=6),
    "other vectors": lambda: make_chunks(3, vectors=1),
    "other heads": lambda: make_chunks(3, heads=3),
    "other dtype": lambda: make_chunks(3, dtype=torch.float64),
}


def test_a_store_that_is_refused_changes_nothing(bank: MemoryBank) -> None:
    """In a fork too, whose new chunks lie elsewhere than those that it shares."""
    bank.fork("a", "~temporary fork")
    names = ("a", "fork", "~temporary fork")
    before = facts(bank)
    for name in names:
        for chunks in REFUSED.values():
            with pytest.raises(BackendError):
                bank.store(name, chunks())
    assert facts(bank) == before
    bank.flush()
    after = facts(bank)
    assert [after[name] for name in names] == [before[name] for name in names]
    for seed, name in enumerate(names, 3):
        good = make_chunks(2, seed=seed)
        assert bank.store(name, good).tolist() == [6, 7]
        assert_same_chunks(bank.fetch(name, torch.tensor([6, 7])), good)


def test_a_store_that_fails_half_way_changes_nothing(bank: MemoryBank) -> None:
    """Embeddings and keys can be read here, and values cannot."""
    before = facts(bank)
    chunks = make_chunks(3, seed=1)
    unreadable = attrs.evolve(chunks, values=chunks.values.to("meta"))
    for namespace in ("a", "fork", "new"):
        with pytest.raises((RuntimeError, NotImplementedError)):
            bank.store(namespace, unreadable)
    assert facts(bank) == before
    bank.flush()
    assert bank.store("a", chunks).tolist() == [6, 7, 8]
    assert_same_chunks(bank.fetch("a", torch.arange(6, 9)), chunks)
    assert_same_chunks(bank.fetch("a", torch.arange(6)), make_chunks(6))


def test_a_restore_that_is_refused_changes_nothing(bank: MemoryBank) -> None:
    before = facts(bank)
    usage = bank.usage("a")
    with pytest.raises(BackendError, match="finite"):
        bank.restore("a", with_bad(make_chunks(6, seed=1), NAN), usage, 9)
    with pytest.raises(ChunkShapeError, match=r"5 chunks.*6"):
        bank.restore("a", make_chunks(5, seed=1), usage, 9)
    with pytest.raises(BackendError, match="finite"):
        bank.restore("new", with_bad(make_chunks(6, seed=1), NAN), usage, 9)
    assert facts(bank) == before
    other = make_chunks(6, seed=2, size=9, dtype=torch.float16)
    bank.restore("a", other, usage, 9)
    bank.flush()
    assert_same_chunks(bank.fetch("a", bank.ids("a")), other)
    assert_same_chunks(bank.fetch("fork", bank.ids("fork")), make_chunks(6))
    assert bank.next_id("a") == 9


@pytest.mark.parametrize("changed", [{"vectors": 0}, {"size": 0}], ids=["V", "E"])
def test_embeddings_without_numbers_are_refused(bank: MemoryBank, changed: dict[str, Any]) -> None:
    """There is nothing to find them by."""
    with pytest.raises(ChunkShapeError, match="no V or E of 0"):
        bank.store("new", make_chunks(2, **changed))
    assert bank.namespaces() == ["a", "fork"]


@pytest.mark.parametrize("changed", [{"heads": 0}, {"key_size": 0}, {"value_size": 0}], ids=["H", "D", "Dv"])
def test_payloads_without_numbers_are_kept(bank: MemoryBank, changed: dict[str, Any]) -> None:
    chunks = make_chunks(5, **changed)
    bank.store("new", chunks)
    bank.flush()
    found = bank.retrieve("new", random_queries(1), 2)
    assert found is not None
    assert_same_chunks(found.chunks, select(chunks, found.ids))


@pytest.mark.parametrize("number", [NAN, INFINITE, -INFINITE])
def test_keys_and_values_may_be_anything(bank: MemoryBank, number: float) -> None:
    """A plain model's cache takes them too; only what is searched must be finite."""
    chunks = make_chunks(5, seed=1)
    chunks.keys[3], chunks.values[4, 0] = number, number
    bank.store("a", chunks)
    bank.flush()
    assert_same_chunks(bank.fetch("a", torch.arange(6, 11)), chunks)


@pytest.mark.parametrize(
    ("queries", "problem"),
    [
        (torch.full((1, 5), NAN), "finite"),
        (torch.full((1, 5), -INFINITE), "finite"),
        (torch.zeros(1, 4), "queries"),
        (torch.zeros(5), "queries"),
        (torch.zeros(1, 5, dtype=torch.float16), "queries"),
        (torch.zeros(1, 5, dtype=torch.int64), "queries"),
    ],
    ids=["NaN", "infinite", "E", "ndim", "float16", "int64"],
)
def test_a_retrieval_that_is_refused_counts_no_use(bank: MemoryBank, queries: torch.Tensor, problem: str) -> None:
    before = facts(bank)
    with pytest.raises(BackendError, match=problem):
        bank.retrieve("a", queries, 2)
    assert facts(bank) == before


@pytest.mark.parametrize("huge", [9, 2**62, 2**70])
def test_more_may_be_wanted_than_any_bank_holds(bank: MemoryBank, huge: int) -> None:
    bank.store("fork", make_chunks(2, seed=1, start=100))
    for namespace, count in (("a", 6), ("fork", 8)):
        everything = bank.retrieve(namespace, random_queries(2), huge)
        assert everything is not None
        assert everything.ids.tolist() == list(range(count))
        usual = bank.retrieve(namespace, random_queries(2), 2, candidates=count)
        some = bank.retrieve(namespace, random_queries(2), 2, candidates=huge)
        assert some is not None
        assert usual is not None
        assert torch.equal(some.ids, usual.ids)
    assert bank.retrieve("nowhere", random_queries(2), huge) is None


def test_an_emptied_bank_answers(bank: MemoryBank) -> None:
    bank.truncate("a", 0)
    bank.flush()
    assert bank.retrieve("a", random_queries(2), 3) is None
    assert bank.count("a") == 0
    assert bank.store("a", make_chunks(1)).tolist() == [0]
    assert bank.count("fork") == 6


@pytest.mark.parametrize(
    "ids",
    [torch.tensor([0.0]), torch.tensor([0], dtype=torch.int32), torch.tensor([True]), torch.zeros(0)],
    ids=["floats", "int32", "bools", "no floats"],
)
def test_ids_of_another_kind_are_refused(bank: MemoryBank, ids: torch.Tensor) -> None:
    with pytest.raises(ChunkShapeError, match="int64"):
        bank.fetch("a", ids)


def test_duplicates_are_chunks_of_their_own(bank: MemoryBank) -> None:
    one = select(make_chunks(1, seed=4), torch.zeros(9, dtype=torch.int64))
    bank.store("same", one)
    bank.store("same", one)
    bank.flush()
    for top_k in (1, 5, 17, 18):
        found = bank.retrieve("same", random_queries(3), top_k)
        assert found is not None
        assert len(set(found.ids.tolist())) == top_k
        assert_same_chunks(found.chunks, select(one, torch.zeros(top_k, dtype=torch.int64)))


def test_positions_are_kept_and_ordered_up_to_the_last_number(bank: MemoryBank) -> None:
    starts = torch.tensor([LARGEST, 2**31, 2**31 - 1, 2**32 + 3, LARGEST - 3, 2**53 + 1])
    bank.store("far", attrs.evolve(make_chunks(6), starts=starts))
    bank.flush()
    found = bank.retrieve("far", random_queries(2), 6)
    assert found is not None
    assert found.chunks.starts.tolist() == sorted(starts.tolist())


def test_tensors_that_are_views_or_require_grad_are_copied(bank: MemoryBank) -> None:
    plain = make_chunks(4, seed=6)
    embeddings = plain.embeddings.clone().requires_grad_()
    odd = attrs.evolve(
        plain,
        embeddings=embeddings * 1,
        keys=plain.keys.transpose(2, 3).contiguous().transpose(2, 3).requires_grad_(),
        values=plain.values.flip(0).flip(0).requires_grad_(),
    )
    ids = bank.store("a", odd)
    with torch.no_grad():
        odd.keys.fill_(NAN)
    for flushed in (False, True):
        if flushed:
            bank.flush()
        got = bank.fetch("a", ids)
        assert_same_chunks(got, plain)
        assert not got.keys.requires_grad
    queries = random_queries(2).T.contiguous().T.requires_grad_()
    found, usual = bank.retrieve("a", queries, 3), bank.retrieve("a", random_queries(2), 3)
    assert found is not None
    assert usual is not None
    assert torch.equal(found.ids, usual.ids)


def wrapped(name: str, path: Path, **changes: Any) -> Any:
    options = {"backend": name, "backend_options": options_of(name, path), **changes}
    return memcore.wrap(tiny_model("llama"), attrs.evolve(CONFIG, **options))


def test_a_model_with_numbers_that_are_none_leaves_its_sessions_as_they_were(name: str, tmp_path: Path) -> None:
    model = wrapped(name, tmp_path)
    session = Session(model, "book")
    session.ingest(TEXT)
    answer = session.ask(TEXT[:, :6], max_new_tokens=5).token_ids
    before, tokens = facts(model.memory.bank), session.tokens
    weight = model.model.layers[1].self_attn.k_proj.weight
    kept = weight.detach().clone()
    for number in (NAN, INFINITE):
        with torch.no_grad():
            weight[0, 0] = number
        with pytest.raises(MemcoreError, match="finite"):
            session.ingest(TEXT)
        with torch.no_grad():
            weight.copy_(kept)
        assert session.tokens == tokens
        after = facts(model.memory.bank)
        for namespace, values in before.items():
            if namespace:
                # All but uses and the next id: what was stored before the failure is gone, and its ids with it.
                assert [values[0], *values[3:9]] == [after[namespace][0], *after[namespace][3:9]]
    assert torch.equal(session.ask(TEXT[:, :6], max_new_tokens=5).token_ids, answer)
    session.ingest(TEXT)
    assert session.tokens == 2 * tokens
    memcore.unwrap(model)


def test_embeddings_given_to_a_model_must_become_finite_keys(name: str, tmp_path: Path) -> None:
    model = wrapped(name, tmp_path)
    usual = model(TEXT).logits
    for number in (NAN, INFINITE):
        given = model.get_input_embeddings()(TEXT).detach().clone()
        given[0, 20, 3] = number
        with pytest.raises(MemcoreError, match="finite"):
            model(inputs_embeds=given)
    assert model.memory.bank.namespaces() == []
    assert torch.equal(model(TEXT).logits, usual)
    memcore.unwrap(model)


def test_a_model_reads_at_positions_far_out(name: str, tmp_path: Path) -> None:
    """As far as they go, and remembers where it was."""
    model = wrapped(name, tmp_path)
    bank = model.memory.bank
    for first in (2**31 - 80, 2**53 + 1, LARGEST - 159):
        out = model(TEXT, position_ids=first + torch.arange(160)[None], use_cache=True)
        assert bool(out.logits.isfinite().all())
        assert bank.namespaces()
        for namespace in bank.namespaces():
            chunks = bank.fetch(namespace, bank.ids(namespace))
            assert chunks.starts.tolist() == [first + CONFIG.sinks + CONFIG.chunk_size * n for n in range(len(chunks))]
            assert torch.equal(chunks.token_ids.flatten(), TEXT[0, CONFIG.sinks :][: chunks.token_ids.numel()])
        del out
    memcore.unwrap(model)


@pytest.mark.filterwarnings("ignore::memcore.MemcoreWarning")
def test_a_model_that_wants_more_chunks_than_there_are_gets_all(name: str, tmp_path: Path) -> None:
    few, huge = wrapped(name, tmp_path / "few", top_k=1000), wrapped(name, tmp_path / "huge", top_k=2**62)
    with torch.no_grad():
        assert torch.equal(few(TEXT).logits, huge(TEXT).logits)
    memcore.unwrap(few)
    memcore.unwrap(huge)
