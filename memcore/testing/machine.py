"""A stateful test: any sequence of calls must leave a backend as it leaves a dictionary of chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from memcore.chunk import NO_CHUNK, ChunkBatch
from memcore.errors import BackendError
from memcore.testing.chunks import DTYPES, make_chunks, select

if TYPE_CHECKING:
    from collections.abc import Callable

    from memcore.backend import MemoryBackend

_NAMES: Final = st.sampled_from(["a", "b", "c"])
_SEEDS: Final = st.integers(0, 2**16)


class BackendMachine(RuleBasedStateMachine):
    """Does the same things to a backend and to a dictionary of chunks, and compares.

    Args:
        backend: an empty backend, which the machine closes.
        exact: whether it must find the very best chunks.
        assert_same: raises if the chunks fetched are not those stored.
    """

    def __init__(
        self, backend: MemoryBackend, *, exact: bool, assert_same: Callable[[ChunkBatch, ChunkBatch], None]
    ) -> None:
        super().__init__()
        self.backend = backend
        self.exact = exact
        self.assert_same = assert_same
        self.model: dict[str, dict[int, ChunkBatch]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self.highest: dict[str, int] = {}

    def teardown(self) -> None:
        self.backend.close()

    @rule(name=_NAMES, count=st.integers(0, 4), width=st.integers(1, 4), seed=_SEEDS, dtype=st.sampled_from(DTYPES))
    def store(self, name: str, count: int, width: int, seed: int, dtype: torch.dtype) -> None:
        dtype = self.dtypes.setdefault(name, dtype)
        chunks = make_chunks(count, width=width, seed=seed, dtype=dtype)
        ids = self.backend.store(name, chunks).tolist()
        assert len(ids) == count
        assert ids == sorted(set(ids))
        if ids:
            assert ids[0] > self.highest.get(name, -1)
            self.highest[name] = ids[-1]
        self.model.setdefault(name, {}).update(
            {id_: select(chunks, slice(place, place + 1)) for place, id_ in enumerate(ids)}
        )

    @rule(name=_NAMES, queries=st.integers(1, 3), top_k=st.integers(1, 6), seed=_SEEDS)
    def retrieve(self, name: str, queries: int, top_k: int, seed: int) -> None:
        wanted = torch.randn(queries, 5, generator=torch.Generator().manual_seed(seed))
        result = self.backend.retrieve(name, wanted, top_k)
        held = self.model.get(name, {})
        found = min(top_k, len(held))
        for query, ids, scores in zip(wanted, result.ids.tolist(), result.scores, strict=True):
            truth = {id_: float((chunk.embeddings[0] @ query).max()) for id_, chunk in held.items()}
            assert ids[found:] == [NO_CHUNK] * (top_k - found)
            assert len(set(ids[:found])) == found
            torch.testing.assert_close(scores[:found], torch.tensor([truth[id_] for id_ in ids[:found]]))
            assert bool((scores[:-1] >= scores[1:]).all())
            if self.exact:
                best = torch.tensor(sorted(truth.values(), reverse=True)[:found])
                torch.testing.assert_close(scores[:found], best)

    @precondition(lambda self: any(self.model.values()))
    @rule(data=st.data())
    def fetch(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(name for name, held in self.model.items() if held)))
        ids = data.draw(st.lists(st.sampled_from(sorted(self.model[name])), max_size=4))
        got = self.backend.fetch(name, torch.tensor(ids, dtype=torch.int64))
        assert len(got) == len(ids)
        for place, id_ in enumerate(ids):
            self.assert_same(select(got, slice(place, place + 1)), self.model[name][id_])

    @precondition(lambda self: any(self.model.values()))
    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(name for name, held in self.model.items() if held)))
        ids = data.draw(st.lists(st.sampled_from(sorted(self.model[name])), unique=True))
        self.backend.evict(name, torch.tensor(ids, dtype=torch.int64))
        for id_ in ids:
            del self.model[name][id_]

    @rule(name=_NAMES)
    def drop(self, name: str) -> None:
        self.backend.drop(name)
        self.drop_from_model(name)

    @rule(old=_NAMES, new=_NAMES)
    def copy(self, old: str, new: str) -> None:
        if old == new:
            return
        self.backend.copy(old, new)
        self.drop_from_model(new)
        if old in self.model:
            ids = self.backend.ids(new).tolist()
            self.model[new] = dict(zip(ids, self.model[old].values(), strict=True))
            self.dtypes[new] = self.dtypes[old]
            if ids:
                self.highest[new] = ids[-1]

    def drop_from_model(self, name: str) -> None:
        self.model.pop(name, None)
        self.dtypes.pop(name, None)
        self.highest.pop(name, None)

    @rule(name=_NAMES)
    def ask_for_what_is_not_there(self, name: str) -> None:
        missing = torch.tensor([10**9])
        for call in (self.backend.fetch, self.backend.evict):
            with pytest.raises(BackendError):
                call(name, missing)

    @invariant()
    def ids_and_counts_agree(self) -> None:
        self.compare(self.backend)

    def compare(self, backend: MemoryBackend) -> None:
        """Check that a backend has the ids that the dictionary has."""
        names = backend.namespaces()
        assert names == sorted(names)
        assert {name for name, held in self.model.items() if held} <= set(names) <= set(self.model)
        for name, held in self.model.items():
            assert backend.ids(name).tolist() == list(held)
            assert backend.count(name) == len(held)
            assert (backend.nbytes(name) > 0) == bool(held)
