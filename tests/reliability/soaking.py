"""A random mix of calls on a memory bank that never ends, each judged by a dictionary of what the bank should hold."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Final

import attrs
import torch

from memcore.backend import MemoryBackend, PersistentBackend
from memcore.bank import MemoryBank
from memcore.chunk import ChunkBatch
from memcore.eviction import ChunkUsage, EvictionPolicy
from memcore.eviction_policies import FifoEviction, LfuEviction, LruEviction, MemLongEviction
from memcore.shelves import TEMPORARY
from memcore.testing import assert_same_chunks, make_chunks, select
from memcore.testing.chunks import random_queries
from memcore.testing.contents import assert_same_contents, contents_of
from reliability.opening import open_backend

EXACT: Final = ("exact", "lmdb")
"""Backends whose search must find the best."""

KEPT: Final = ("a", "b", "c", "d")
_NAMES: Final = (*KEPT, f"{TEMPORARY}e", f"{TEMPORARY}f")
_CAPACITY: Final = 40
_ALL: Final = 16
"""Chunks made with one seed."""

_TOLERANCE: Final = 1e-4
"""Between products that are summed up in another order."""

_CALLS: Final = {"store": 30, "retrieve": 40, "truncate": 4, "drop": 2, "fork": 4, "flush": 10, "reopen": 2}
"""How often each call is made, in proportion."""

POLICIES: Final[dict[str, EvictionPolicy]] = {
    "memlong": MemLongEviction(),
    "lru": LruEviction(),
    "lfu": LfuEviction(),
    "fifo": FifoEviction(),
}


@attrs.define
class Use:
    """What should be known of a chunk.

    Attributes:
        seed: of :func:`chunks_of`.
        row: which of those it is.
        last_used: in calls of this run.
        retrievals: how often it was retrieved.
    """

    seed: int
    row: int
    last_used: int
    retrievals: int = 0


@attrs.define
class Held:
    """What a namespace should hold: by id, ascending, and the id that comes next."""

    uses: dict[int, Use] = attrs.field(factory=dict)
    next_id: int = 0

    def usage(self) -> ChunkUsage:
        """Return what its bank should tell of it, except that ``last_used`` is in calls."""
        uses = self.uses.values()
        return ChunkUsage(
            ids=torch.tensor(list(self.uses), dtype=torch.int64),
            last_used=torch.tensor([use.last_used for use in uses], dtype=torch.int64),
            retrievals=torch.tensor([use.retrievals for use in uses], dtype=torch.int64),
        )

    def copy(self) -> Held:
        """Return the same, apart from this."""
        return Held({id: attrs.evolve(use) for id, use in self.uses.items()}, self.next_id)


@functools.lru_cache(maxsize=256)
def chunks_of(seed: int) -> ChunkBatch:
    return make_chunks(_ALL, seed=seed, width=16, key_size=16, value_size=16)


class Soak:
    """A bank under way, and what it should hold.

    Attributes:
        bank: on the backend.
        calls: made so far, by kind.
        evicted: chunks that the policy has chosen.

    Args:
        name: of the backend.
        folder: for what it keeps.
        seed: of the calls.
        compacting: whether a persistent backend is compacted now and then.
        policy: what to forget.
    """

    def __init__(
        self, name: str, folder: Path, *, seed: int = 0, compacting: bool = True, policy: str = "memlong"
    ) -> None:
        self.calls: dict[str, int] = {}
        self.evicted = 0
        self._name, self._folder = name, folder
        self._policy = POLICIES[policy]
        self._choice = random.Random(seed)
        self._held: dict[str, Held] = {}
        self._clock = 0
        self._weights = {**_CALLS, "compact": int(compacting)}
        if name not in ("lmdb", "hnswlib"):
            del self._weights["reopen"]
        if name != "lmdb":
            del self._weights["compact"]
        self.bank = self._open()

    def close(self) -> None:
        """Close the bank."""
        self.bank.close()

    @property
    def disk_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self._folder.rglob("*") if file.is_file())

    def step(self) -> None:
        """Make a call, and see that it did what it should."""
        kind = self._choice.choices(list(self._weights), list(self._weights.values()))[0]
        self._clock += 1
        self.calls[kind] = self.calls.get(kind, 0) + 1
        getattr(self, f"_{kind}")(self._choice.choice(_NAMES))

    def check(self, bank: MemoryBank | None = None) -> None:
        """See that the bank, or another on the same memory, holds what it should, uses included."""
        bank = bank or self.bank
        held = {name: each for name, each in self._held.items() if bank is self.bank or name in KEPT}
        assert bank.namespaces() == sorted(held)
        for name, each in held.items():
            got, want = bank.usage(name), each.usage()
            assert torch.equal(got.ids, want.ids), name
            assert torch.equal(got.retrievals, want.retrievals), name
            assert torch.equal(_ranks(got.last_used), _ranks(want.last_used)), name
            assert bank.next_id(name) == each.next_id

    def _store(self, name: str) -> None:
        seed, count = self._choice.randrange(2**48), self._choice.randrange(1, _ALL + 1)
        ids = self.bank.store(name, select(chunks_of(seed), slice(count)))
        held = self._held.setdefault(name, Held())
        assert ids.tolist() == list(range(held.next_id, held.next_id + count))
        held.uses |= {id: Use(seed, row, self._clock) for row, id in enumerate(ids.tolist())}
        held.next_id += count
        if len(held.uses) > _CAPACITY:
            for id in self._policy.select(held.usage(), _CAPACITY).tolist():
                del held.uses[id]
                self.evicted += 1
        assert self.bank.ids(name).tolist() == list(held.uses)

    def _retrieve(self, name: str) -> None:
        query, top_k = random_queries(1, seed=self._choice.randrange(2**48)), self._choice.randrange(1, 9)
        found = self.bank.retrieve(name, query, top_k)
        uses = self._held[name].uses if name in self._held else {}
        if found is None:
            assert not uses
            return
        ids = found.ids.tolist()
        assert len(ids) == len(set(ids)) == min(top_k, len(uses))
        for row, id in enumerate(ids):
            use = uses[id]
            want = select(chunks_of(use.seed), slice(use.row, use.row + 1))
            assert_same_chunks(select(found.chunks, slice(row, row + 1)), want)
            use.last_used, use.retrievals = self._clock, use.retrievals + 1
        if self._name in EXACT:
            vectors = torch.stack([chunks_of(use.seed).embeddings[use.row] for use in uses.values()])
            scores = dict(zip(uses, (vectors @ query[0]).amax(dim=1).tolist(), strict=True))
            least = sorted(scores.values())[-len(ids)]
            assert min(scores[id] for id in ids) >= least - _TOLERANCE

    def _truncate(self, name: str) -> None:
        held = self._held.get(name, Held())
        next_id = max(0, held.next_id - self._choice.randrange(12))
        self.bank.truncate(name, next_id)
        for id in [id for id in held.uses if id >= next_id]:
            del held.uses[id]
        held.next_id = next_id

    def _drop(self, name: str) -> None:
        self.bank.drop(name)
        self._held.pop(name, None)

    def _fork(self, name: str) -> None:
        target = self._choice.choice([each for each in _NAMES if each != name])
        self.bank.fork(name, target)
        self._held.pop(target, None)
        if name in self._held:
            self._held[target] = self._held[name].copy()

    def _flush(self, _: str) -> None:
        self.bank.flush()
        if self._name == "lmdb" and self._choice.random() < 0.2:
            reader = MemoryBank(self._backend(read_only=True), self._policy, capacity=_CAPACITY)
            self.check(reader)
            reader.close()

    def _compact(self, _: str) -> None:
        assert self.bank.persistent is not None
        self.bank.flush()
        self.bank.persistent.compact()

    def _reopen(self, _: str) -> None:
        if self._name == "hnswlib":
            self._load_a_second_time()
            return
        self.bank.close()
        self._held = {name: held for name, held in self._held.items() if name in KEPT}
        self.bank = self._open()
        assert isinstance(self.bank.backend, PersistentBackend)
        assert self.bank.backend.verify() == []
        self.check()

    def _load_a_second_time(self) -> None:
        from memcore_hnswlib.backend import HnswlibBackend
        from memcore_hnswlib.options import HnswlibOptions

        backend = self.bank.backend
        assert isinstance(backend, HnswlibBackend)
        backend.save(self._folder)
        twin = HnswlibBackend(HnswlibOptions(path=self._folder, exact_below=0))
        assert_same_contents(contents_of(twin), contents_of(backend))
        twin.close()

    def _open(self) -> MemoryBank:
        return MemoryBank(self._backend(), self._policy, capacity=_CAPACITY)

    def _backend(self, **options: object) -> MemoryBackend:
        if self._name == "lmdb":
            options = {"map_size": 1 << 20, "write_buffer": 1 << 18, **options}
        return open_backend(self._name, self._folder, **options)


def _ranks(numbers: torch.Tensor) -> torch.Tensor:
    """Return the order of numbers, for a bank that was opened again may count on from less."""
    ranks: torch.Tensor = numbers.unique(return_inverse=True)[1]
    return ranks
