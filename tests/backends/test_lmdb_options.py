"""Options of the ``lmdb`` backend, and dtypes and devices of what it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import pytest
import torch

from memcore.errors import ConfigError
from memcore.options import structure_options
from memcore.testing import assert_same_chunks, make_chunks, select

pytest.importorskip("lmdb")

from lmdb_memories import open_at
from memcore_lmdb.backend import LmdbBackend
from memcore_lmdb.options import LmdbOptions
from memcore_lmdb.plugin import memcore_backends

if TYPE_CHECKING:
    from pathlib import Path


class TestOptions:
    def test_they_are_structured_from_plain_values(self, tmp_path: Path) -> None:
        options = structure_options(LmdbOptions, {"path": str(tmp_path), "lock_timeout": 1, "verify": "never"})
        assert options.path == tmp_path
        assert options.lock_timeout == 1.0

    @pytest.mark.parametrize(
        "values",
        [
            {},
            {"path": 3},
            {"path": "a", "map_size": 5},
            {"path": "a", "verify": "sometimes"},
            {"path": "a", "compression": "zip"},
            {"path": "a", "lock_timeout": -1},
            {"path": "a", "write_buffer": -1},
            {"path": "a", "hold_vectors": -1},
        ],
        ids=lambda values: " ".join(map(str, values)),
    )
    def test_bad_ones_are_refused(self, values: dict[str, object]) -> None:
        with pytest.raises(ConfigError, match=list(values)[-1] if values else "path"):
            structure_options(LmdbOptions, values)

    def test_compression_is_for_new_namespaces(self, tmp_path: Path) -> None:
        with open_at(tmp_path) as backend:
            ids = backend.store("a", make_chunks(3))
        with open_at(tmp_path, compression="int8") as backend:
            more = backend.store("a", make_chunks(3, seed=1))
            assert_same_chunks(backend.fetch("a", torch.cat((ids, more))[:3]), make_chunks(3))
            small = backend.store("b", make_chunks(3))
            backend.copy("b", "c")
        with open_at(tmp_path) as backend:
            assert_same_chunks(backend.fetch("a", more), make_chunks(3, seed=1))
            got = backend.fetch("c", small)
            assert not torch.equal(got.keys, make_chunks(3).keys)
            torch.testing.assert_close(got.starts, make_chunks(3).starts)

    def test_the_plugin_loads_the_backend(self) -> None:
        (component,) = memcore_backends()
        assert component.load() is LmdbBackend


def test_a_float8_payload_is_kept_bit_for_bit(tmp_path: Path) -> None:
    chunks = make_chunks(3)
    small = attrs.evolve(chunks, keys=chunks.keys.to(torch.float8_e4m3fn), values=chunks.values.to(torch.float8_e4m3fn))
    with open_at(tmp_path) as backend:
        ids = backend.store("a", attrs.evolve(small, lengths=torch.full((3,), 3)))
        backend.flush()
        assert torch.equal(backend.fetch("a", ids).keys.view(torch.uint8), small.keys.view(torch.uint8))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_ids_may_be_on_a_gpu(tmp_path: Path) -> None:
    chunks = make_chunks(4)
    with open_at(tmp_path) as backend:
        first = backend.store("a", select(chunks, slice(2)))
        backend.flush()
        ids = torch.cat((backend.store("a", select(chunks, slice(2, None))), first)).cuda()
        assert_same_chunks(backend.fetch("a", ids), select(chunks, [2, 3, 0, 1]))
        backend.evict("a", ids[:3])
        assert backend.ids("a").tolist() == [1]
