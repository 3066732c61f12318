"""A bank that is used as it comes, reopened and killed, against dictionaries: chunks, ids and uses."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from memcore.backend import MemoryBackend
from memcore.bank import MemoryBank
from memcore.chunk import ChunkBatch
from memcore.eviction import ChunkUsage
from memcore.eviction_policies import MemLongEviction
from memcore.exact_backend import ExactBackend, ExactOptions
from memcore.plugins import registry
from memcore.testing import assert_same_chunks, make_chunks, select

CAPACITY = 6
QUERY = torch.randn(1, 5, generator=torch.Generator().manual_seed(1))
NAMES = st.sampled_from(["a", "b", "~question"])


@attrs.define
class Held:
    """What a namespace should hold: chunks, last uses and retrievals by id."""

    chunks: dict[int, ChunkBatch] = attrs.field(factory=dict)
    last_used: dict[int, int] = attrs.field(factory=dict)
    retrievals: dict[int, int] = attrs.field(factory=dict)
    next_id: int = 0

    def twin(self) -> Held:
        return Held(dict(self.chunks), dict(self.last_used), dict(self.retrievals), self.next_id)

    def remove(self, ids: list[int]) -> None:
        for id_ in ids:
            del self.chunks[id_], self.last_used[id_], self.retrievals[id_]

    def usage(self) -> ChunkUsage:
        return ChunkUsage(
            ids=torch.tensor(list(self.chunks)),
            last_used=torch.tensor(list(self.last_used.values())),
            retrievals=torch.tensor(list(self.retrievals.values())),
        )

    def best(self, top_k: int) -> set[int]:
        scores = {id_: float((chunk.embeddings[0] @ QUERY[0]).max()) for id_, chunk in self.chunks.items()}
        return set(sorted(scores, key=lambda id_: -scores[id_])[:top_k])


class InMemory(RuleBasedStateMachine):
    """Does as it pleases with a bank on the exact backend."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, Held] = {}
        self.clock = 0
        self.seed = 0
        self.open()

    def make_backend(self) -> MemoryBackend:
        return ExactBackend(ExactOptions())

    def open(self) -> None:
        self.backend: Any = self.make_backend()
        self.bank = MemoryBank(self.backend, MemLongEviction(), capacity=CAPACITY)

    @rule(name=NAMES, count=st.integers(1, 4))
    def store(self, name: str, count: int) -> None:
        self.seed += 1
        self.clock += 1
        chunks = make_chunks(count, seed=self.seed, start=100 * self.seed)
        held = self.held.setdefault(name, Held())
        ids = self.bank.store(name, chunks).tolist()
        assert ids == list(range(held.next_id, held.next_id + count))
        held.next_id += count
        for place, id_ in enumerate(ids):
            held.chunks[id_] = select(chunks, slice(place, place + 1))
            held.last_used[id_], held.retrievals[id_] = self.clock, 0
        if len(held.chunks) > CAPACITY:
            held.remove(MemLongEviction().select(held.usage(), CAPACITY).tolist())

    @rule(name=NAMES, top_k=st.integers(1, 7))
    def retrieve(self, name: str, top_k: int) -> None:
        found = self.bank.retrieve(name, QUERY, top_k)
        held = self.held.get(name, Held())
        if found is None:
            assert not held.chunks
            return
        self.clock += 1
        assert set(found.ids.tolist()) == held.best(top_k)
        for place, id_ in enumerate(found.ids.tolist()):
            assert_same_chunks(select(found.chunks, slice(place, place + 1)), held.chunks[id_])
            held.last_used[id_] = self.clock
            held.retrievals[id_] += 1

    @rule(old=NAMES, new=NAMES)
    def fork(self, old: str, new: str) -> None:
        self.bank.fork(old, new)
        if old in self.held:
            self.held[new] = self.held[old].twin()
        else:
            self.held.pop(new, None)

    @rule(name=NAMES)
    def drop(self, name: str) -> None:
        self.bank.drop(name)
        self.held.pop(name, None)

    @rule(name=NAMES)
    def discard(self, name: str) -> None:
        self.bank.discard([name])
        self.held.pop(name, None)

    @rule(name=NAMES, back=st.integers(0, 5))
    def truncate(self, name: str, back: int) -> None:
        held = self.held.get(name, Held())
        next_id = max(0, held.next_id - back)
        self.bank.truncate(name, next_id)
        held.remove([id_ for id_ in held.chunks if id_ >= next_id])
        held.next_id = next_id

    @rule(name=NAMES)
    def store_and_take_back(self, name: str) -> None:
        self.store(name, 2)
        self.truncate(name, 2)

    @invariant()
    def agree(self) -> None:
        assert self.bank.namespaces() == sorted(self.held)
        for name, held in self.held.items():
            usage = self.bank.usage(name)
            assert usage.ids.tolist() == list(held.chunks)
            assert usage.retrievals.tolist() == list(held.retrievals.values())
            # The clock of a bank that was opened goes on from what it has looked at, so only the order tells.
            assert ranks(usage.last_used.tolist()) == ranks(list(held.last_used.values()))
            assert self.bank.next_id(name) == held.next_id

    def teardown(self) -> None:
        for name in list(self.held):
            self.drop(name)
        assert self.backend.nbytes() == 0
        self.bank.close()


class OnDisk(InMemory):
    """Reopens the bank, too, and kills its process."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "0"
        self.lives = 0
        self.saved: dict[str, Held] = {}
        super().__init__()

    def make_backend(self) -> MemoryBackend:
        kind: Any = registry().load_component("backends", "lmdb")
        backend: MemoryBackend = kind(kind.Options(path=self.path, sync=False, map_size=1 << 20))
        return backend

    @rule()
    def flush(self) -> None:
        self.bank.flush()
        self.saved = {name: held.twin() for name, held in self.held.items() if not name.startswith("~")}

    @rule()
    def reopen(self) -> None:
        self.flush()
        self.bank.close()
        self.open_anew()

    @rule()
    def kill(self) -> None:
        """Goes on with the folder as it is at this moment."""
        self.lives += 1
        path = self.path.with_name(str(self.lives))
        shutil.copytree(self.path, path)
        self.bank.close()
        self.path = path
        self.open_anew()

    def open_anew(self) -> None:
        self.open()
        self.held = {name: held.twin() for name, held in self.saved.items()}
        assert not [name for name in self.backend.namespaces() if name.startswith("~")]
        assert self.backend.record_names() == [f"usage/{name}" for name in sorted(self.saved)]

    def teardown(self) -> None:
        super().teardown()
        self.folder.cleanup()


class WithCopiesOfOtherIds(OnDisk):
    """Has a backend that copies chunk by chunk, as the contract does, so copies have ids of their own."""

    def make_backend(self) -> MemoryBackend:
        backend: Any = super().make_backend()
        backend.copy = lambda source, target: MemoryBackend.copy(backend, source, target)
        return backend  # type: ignore[no-any-return]


def ranks(values: list[int]) -> list[int]:
    order = sorted(set(values))
    return [order.index(value) for value in values]


TestInMemory = InMemory.TestCase
TestOnDisk = pytest.mark.skipif(
    bool(registry().components("backends")["lmdb"].missing()), reason="lmdb is not installed"
)(OnDisk.TestCase)
TestCopies = pytest.mark.skipif(
    bool(registry().components("backends")["lmdb"].missing()), reason="lmdb is not installed"
)(WithCopiesOfOtherIds.TestCase)
InMemory.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
OnDisk.TestCase.settings = WithCopiesOfOtherIds.TestCase.settings = settings(
    max_examples=20, stateful_step_count=25, deadline=None
)
