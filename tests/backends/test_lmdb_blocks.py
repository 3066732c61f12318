"""How the ``lmdb`` backend keeps embeddings in blocks, and that nothing is left of what goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from memcore.exact_backend import ExactBackend, ExactOptions
from memcore.testing import assert_same_chunks, make_chunks, random_queries, select

pytest.importorskip("lmdb")

from lmdb_memories import keys_of, open_at
from memcore_lmdb import block_writing
from memcore_lmdb.backend import LmdbBackend
from memcore_lmdb.format import BLOCK, PAYLOAD, VECTORS

if TYPE_CHECKING:
    from pathlib import Path


def blocks(backend: LmdbBackend, namespace: str = "a") -> list[int]:
    """Return how many chunks each block of a namespace has."""
    found = backend._find(namespace)
    assert found is not None
    return [len(block) for block in found.blocks]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_writing, "BLOCK_BYTES", 64 * 2 * 5 * 4)  # 64 chunks


class TestBlocks:
    @pytest.mark.usefixtures("small_blocks")
    @pytest.mark.parametrize("step", [1, 3, 100])
    def test_small_flushes_end_in_few_blocks(self, tmp_path: Path, step: int) -> None:
        with open_at(tmp_path) as backend:
            for seed in range(300 // step):
                backend.store("a", make_chunks(step, seed=seed))
                backend.flush()
            sizes = blocks(backend)
            assert sum(sizes) == 300
            assert max(sizes) <= 64
            assert len(sizes) <= 2 * 300 / 64 + 7
        assert len(keys_of(tmp_path, VECTORS)) == len(keys_of(tmp_path, BLOCK)) == len(sizes)

    @pytest.mark.usefixtures("small_blocks")
    def test_a_chunk_is_written_again_a_bounded_number_of_times(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written = []
        write = block_writing._write

        def counting(txn: Any, number: int, rows: block_writing.NewRows, *, checked: bool) -> Any:
            written.append(len(rows))
            return write(txn, number, rows, checked=checked)

        monkeypatch.setattr(block_writing, "_write", counting)
        with open_at(tmp_path) as backend:
            for seed in range(256):
                backend.store("a", make_chunks(1, seed=seed))
                backend.flush()
        assert sum(written) <= 256 * 7  # the logarithm of 64, and once

    @pytest.mark.usefixtures("small_blocks")
    def test_blocks_that_are_mostly_evicted_are_written_anew(self, tmp_path: Path) -> None:
        with open_at(tmp_path) as backend:
            ids = backend.store("a", make_chunks(192))
            backend.flush()
            backend.evict("a", ids[[place for place in range(192) if place % 4]])
            backend.flush()
            found = backend._find("a")
            assert found is not None
            assert [block.rows for block in found.blocks] == [48]
            backend.evict("a", ids[0::8])
            backend.evict("a", ids[4:32:8])
            backend.flush()
            assert_same_chunks(backend.fetch("a", backend.ids("a")), select(make_chunks(192), backend.ids("a")))
            assert backend.verify() == []

    @pytest.mark.usefixtures("small_blocks")
    def test_search_over_many_blocks_and_what_is_staged_is_exact(self, tmp_path: Path) -> None:
        exact = ExactBackend(ExactOptions())
        with open_at(tmp_path) as backend:
            for seed in range(12):
                chunks = make_chunks(30, seed=seed)
                for each in (exact, backend):
                    ids = each.store("a", chunks)
                    each.evict("a", ids[seed::4])
                if seed % 4 == 1:
                    backend.flush()
            for top_k in (1, 7, 300):
                want, got = (each.retrieve("a", random_queries(5), top_k) for each in (exact, backend))
                assert torch.equal(got.ids, want.ids)
                torch.testing.assert_close(got.scores, want.scores)

    def test_an_emptied_namespace_leaves_nothing_but_itself(self, tmp_path: Path) -> None:
        with open_at(tmp_path) as backend:
            ids = backend.store("a", make_chunks(5))
            backend.flush()
            backend.evict("a", ids)
            backend.flush()
            assert backend.namespaces() == ["a"]
        assert keys_of(tmp_path, BLOCK) == keys_of(tmp_path, VECTORS) == keys_of(tmp_path, PAYLOAD) == []

    def test_what_is_dropped_or_replaced_leaves_nothing(self, tmp_path: Path) -> None:
        with open_at(tmp_path) as backend:
            for name in ("a", "b", "c"):
                backend.store(name, make_chunks(5))
            backend.flush()
            backend.copy("a", "b")
            backend.drop("c")
            backend.drop("a")
            backend.store("a", make_chunks(1))
        assert len(keys_of(tmp_path, PAYLOAD)) == 6
