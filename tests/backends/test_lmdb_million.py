"""A memory of a million tokens: it opens at once and answers from the file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

from memcore.chunk import ChunkBatch

pytest.importorskip("lmdb")

from memcore_lmdb.backend import LmdbBackend
from memcore_lmdb.options import LmdbOptions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LAYERS, CHUNKS, LENGTH, SIZE, VECTORS = 3, 15_625, 64, 256, 8

MEASURE = """
import json, sys, time
from pathlib import Path
import psutil, torch
from memcore_lmdb.backend import LmdbBackend
from memcore_lmdb.options import LmdbOptions

def private():
    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared

torch.ones(512, 512) @ torch.ones(512, 512)  # so that torch has what it needs
before, start = private(), time.perf_counter()
backend = LmdbBackend(LmdbOptions(path=Path(sys.argv[1]), read_only=True))
counts = [backend.count(name) for name in backend.namespaces()]
opened = time.perf_counter() - start
generator, passes = torch.Generator().manual_seed(1), []
for _ in range(2):
    start = time.perf_counter()
    for name in backend.namespaces():
        found = backend.retrieve(name, torch.randn(4, 256, generator=generator), 8)
        backend.fetch(name, found.ids.flatten().unique())
    passes.append((time.perf_counter() - start) / len(counts))
held = private() - before
print(json.dumps({"counts": counts, "open_s": opened, "first_s": passes[0], "answer_s": passes[1], "private": held}))
"""


def layer() -> Iterator[ChunkBatch]:
    """Yield the chunks of one layer, in batches."""
    generator = torch.Generator().manual_seed(0)
    for first in range(0, CHUNKS, 625):
        numbers = torch.randn(625, VECTORS, SIZE, generator=generator)
        payload = numbers.to(torch.bfloat16).repeat(1, LENGTH // VECTORS, 1)[:, None]
        yield ChunkBatch(
            embeddings=numbers,
            keys=payload,
            values=-payload,
            starts=LENGTH * torch.arange(first, first + 625),
            lengths=torch.full((625,), LENGTH),
            token_ids=torch.arange(625 * LENGTH).view(625, LENGTH),
        )


@pytest.mark.slow
def test_a_million_tokens_open_in_under_a_second_and_stay_on_disk(tmp_path: Path) -> None:
    with LmdbBackend(LmdbOptions(path=tmp_path, sync=False)) as backend:
        for number in range(LAYERS):
            for chunks in layer():
                backend.store(f"layer {number}", chunks)
        assert backend.count("layer 0") == CHUNKS
        backend.flush()
        stored = backend.nbytes()
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    shutil.rmtree(tmp_path)  # gigabytes, which pytest would keep for a while
    measured: dict[str, Any] = json.loads(done.stdout)
    print(measured)  # noqa: T201  # for who runs it with -s
    assert stored > 3 << 30
    assert measured["counts"] == [CHUNKS] * LAYERS
    assert measured["open_s"] < 1
    assert measured["private"] < 100 << 20
