"""Namespaces: each on its own, whatever it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from memcore.chunk import NO_CHUNK
from memcore.errors import (
    UnknownChunkError,
)
from memcore.testing.case import BackendCase
from memcore.testing.chunks import make_chunks, select
from memcore.testing.names import ODD_NAMES

if TYPE_CHECKING:
    from memcore.backend import MemoryBackend


class NamespaceTests(BackendCase):
    """What happens in one namespace does not show in another."""

    def test_namespaces_are_apart(self, backend: MemoryBackend) -> None:
        one, two = make_chunks(3, seed=1), make_chunks(2, seed=2, size=7, dtype=torch.bfloat16)
        ids = backend.store("one", one)
        other = backend.store("two", two)
        assert backend.namespaces() == ["one", "two"]
        backend.evict("two", other[:1])
        self.assert_same(backend.fetch("one", ids), one)
        self.assert_same(backend.fetch("two", other[1:]), select(two, slice(1, None)))
        backend.drop("one")
        assert backend.namespaces() == ["two"]
        assert backend.count("one") == 0
        assert backend.count("two") == 1

    def test_a_dropped_namespace_may_begin_again_with_other_shapes(self, backend: MemoryBackend) -> None:
        backend.store("a", make_chunks(2))
        backend.drop("a")
        backend.drop("a")
        chunks = make_chunks(2, vectors=1, size=3, heads=1, dtype=torch.float16)
        self.assert_same(backend.fetch("a", backend.store("a", chunks)), chunks)

    def test_a_copy_is_alike_and_apart(self, backend: MemoryBackend) -> None:
        chunks = make_chunks(4)
        ids = backend.store("a", chunks)
        backend.evict("a", ids[:1])
        backend.store("b", make_chunks(1, size=9))
        backend.copy("a", "b")
        backend.evict("a", ids[1:2])
        backend.store("a", make_chunks(1, seed=5))
        copied = backend.ids("b")
        self.assert_same(backend.fetch("b", copied), select(chunks, slice(1, None)))
        assert int(backend.store("b", make_chunks(1))[0]) > int(copied[-1])

    def test_a_copy_of_nothing_is_nothing(self, backend: MemoryBackend) -> None:
        backend.store("b", make_chunks(1))
        backend.copy("unknown", "b")
        assert backend.count("b") == 0

    def test_odd_names_are_apart(self, backend: MemoryBackend) -> None:
        ids = [backend.store(name, make_chunks(2, seed=seed)) for seed, name in enumerate(ODD_NAMES)]
        assert backend.namespaces() == sorted(ODD_NAMES)
        for name, own in zip(ODD_NAMES[::2], ids[::2], strict=True):
            backend.evict(name, own[:1])
        for seed, (name, own) in enumerate(zip(ODD_NAMES, ids, strict=True)):
            kept = slice(1, None) if seed % 2 == 0 else slice(None)
            assert torch.equal(backend.ids(name), own[kept])
            self.assert_same(backend.fetch(name, own[kept]), select(make_chunks(2, seed=seed), kept))
            assert set(backend.retrieve(name, torch.zeros(1, 5), 2).ids[0].tolist()) <= {*own[kept].tolist(), NO_CHUNK}

    def test_odd_names_are_dropped_one_by_one(self, backend: MemoryBackend) -> None:
        for name in ODD_NAMES:
            backend.store(name, make_chunks(1))
        left = set(ODD_NAMES)
        for name in ODD_NAMES:
            backend.drop(name)
            left.remove(name)
            assert backend.namespaces() == sorted(left)

    def test_ids_of_another_namespace_are_unknown(self, backend: MemoryBackend) -> None:
        backend.store("a", make_chunks(1))
        other = backend.store("b", make_chunks(5))[-1:]
        for call in (backend.fetch, backend.evict):
            with pytest.raises(UnknownChunkError):
                call("a", other)
        assert backend.count("b") == 5

    def test_a_copy_takes_the_place_of_what_was_there(self, backend: MemoryBackend) -> None:
        chunks = make_chunks(3, seed=1, size=7, dtype=torch.float16)
        backend.store("a", chunks)
        backend.store("b", make_chunks(5))
        backend.copy("a", "b")
        assert backend.count("b") == 3
        self.assert_same(backend.fetch("b", backend.ids("b")), chunks)
        backend.copy("b", "b")
        self.assert_same(backend.fetch("b", backend.ids("b")), chunks)
