"""Threads: tested where a backend says that one instance may be used from several."""

from __future__ import annotations

import random
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pytest
import torch

from memcore.chunk import NO_CHUNK
from memcore.testing.case import BackendCase
from memcore.testing.chunks import make_chunks, random_queries, select

if TYPE_CHECKING:
    from collections.abc import Callable

    from memcore.backend import MemoryBackend
    from memcore.chunk import ChunkBatch

T = TypeVar("T")

_THREADS: Final = 4
_STEPS: Final = 8


class ThreadTests(BackendCase):
    """What each thread did must be there, and nothing else."""

    @pytest.fixture
    def shared(self, backend: MemoryBackend) -> Any:
        """The backend, with threads that take turns much more often than they use to."""
        if not backend.thread_safe:
            pytest.skip("is not declared thread-safe")
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        yield backend
        sys.setswitchinterval(interval)

    def test_threads_in_namespaces_of_their_own(self, shared: MemoryBackend) -> None:
        def live(worker: int) -> None:
            name, choice = f"own {worker}", random.Random(worker)
            held: dict[int, ChunkBatch] = {}
            for step in range(_STEPS):
                chunks = make_chunks(3, seed=100 * worker + step)
                ids = shared.store(name, chunks).tolist()
                held |= {id: select(chunks, slice(row, row + 1)) for row, id in enumerate(ids)}
                assert set(shared.retrieve(name, random_queries(2), 4).ids.flatten().tolist()) <= {*held, NO_CHUNK}
                gone = choice.sample(sorted(held), 2)
                shared.evict(name, torch.tensor(gone))
                for id in gone:
                    del held[id]
                assert shared.ids(name).tolist() == list(held)
                fetched = shared.fetch(name, torch.tensor(list(held)))
                for row, chunk in enumerate(held.values()):
                    self.assert_same(select(fetched, slice(row, row + 1)), chunk)
                shared.copy(name, f"copy {worker}")
                assert shared.count(f"copy {worker}") == len(held)
                assert name in shared.namespaces()
                assert shared.nbytes() > 0
                shared.drop(f"copy {worker}")

        together(live)
        assert shared.namespaces() == [f"own {worker}" for worker in range(_THREADS)]

    def test_threads_in_one_namespace(self, shared: MemoryBackend) -> None:
        def live(worker: int) -> tuple[list[int], dict[int, ChunkBatch]]:
            given: list[int] = []
            kept: dict[int, ChunkBatch] = {}
            for step in range(_STEPS):
                chunks = make_chunks(3, seed=100 * worker + step)
                ids = shared.store("a", chunks)
                self.assert_same(shared.fetch("a", ids), chunks)
                query = chunks.embeddings[0, :1]
                result = shared.retrieve("a", query, 1000)
                found = dict(zip(result.ids[0].tolist(), result.scores[0], strict=True))
                for row, id in enumerate(ids.tolist()):
                    if self.exact:
                        torch.testing.assert_close(found[id], (chunks.embeddings[row] @ query[0]).max())
                shared.evict("a", ids[1:2])
                given += ids.tolist()
                kept |= {id: select(chunks, slice(row, row + 1)) for row, id in enumerate(ids.tolist()) if row != 1}
            return given, kept

        results = together(live)
        given = [id for ids, _ in results for id in ids]
        assert len(set(given)) == len(given) == 3 * _STEPS * _THREADS
        kept = {id: chunk for _, held in results for id, chunk in held.items()}
        assert shared.ids("a").tolist() == sorted(kept)
        for id, chunk in kept.items():
            self.assert_same(shared.fetch("a", torch.tensor([id])), chunk)


def together(work: Callable[[int], T]) -> list[T]:
    """Run ``work`` with the number of its thread in several threads at once, and return or raise what they do."""
    barrier = Barrier(_THREADS)

    def start(worker: int) -> T:
        barrier.wait()
        return work(worker)

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(start, range(_THREADS)))
