"""Fetching random chunks from ``lmdb``, beside a plain copy of their bytes: run by ``backends.py`` in its own process.

    python benchmarks/payload_reads.py '{"count": 2000, "tokens": 128, ...}'

Both read what is in the page cache, into memory that they have had before. The result is one line of JSON on standard
output.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import torch
from backend_cell import compared, timed
from torch import Tensor

from memcore.chunk import ChunkBatch
from memcore.options import structure_options
from memcore.plugins import registry

SPACE: Final = "layer"
CHECKS: Final = {"first": "the first time only", "always": "every time", "never": "never"}


@attrs.frozen(kw_only=True)
class Reads:
    """What to measure.

    Attributes:
        count: chunks stored.
        tokens: per chunk, of 4 heads with 64 numbers in bfloat16: 512 bytes each for key and value.
        fetched: chunks per fetch.
        seconds: for how long, per way of checking.
        clock: as for ``backend_cell.Cell``.
        folder: for files.
    """

    count: int
    tokens: int
    fetched: int
    seconds: float
    clock: str
    folder: str


def measure(reads: Reads) -> dict[str, Any]:
    """Measure each way of comparing checksums."""
    folder = Path(tempfile.mkdtemp(dir=reads.folder))
    generator = torch.Generator().manual_seed(0)
    shape = (reads.count, 4, reads.tokens, 64)
    chunks = ChunkBatch(
        embeddings=torch.randn(reads.count, 1, 64, generator=generator),
        keys=torch.randn(shape, generator=generator).to(torch.bfloat16),
        values=torch.randn(shape, generator=generator).to(torch.bfloat16),
        starts=torch.arange(reads.count) * reads.tokens,
        lengths=torch.full((reads.count,), reads.tokens),
        token_ids=torch.zeros(reads.count, reads.tokens, dtype=torch.int64),
    )
    path = folder / "memory"
    cls = registry().load_component("backends", "lmdb")
    with cls(structure_options(cls.Options, {"path": path})) as backend:
        ids = backend.store(SPACE, chunks)
    plain = folder / "plain"
    payload = torch.stack((chunks.keys, chunks.values), dim=1).flatten(1)
    plain.write_bytes(memoryview(payload.view(torch.uint8).numpy()))  # type: ignore[arg-type]
    mapped = torch.from_file(str(plain), shared=False, size=payload.numel(), dtype=payload.dtype).view_as(payload)
    picks = torch.randint(reads.count, (4096, reads.fetched), generator=generator)
    results = {}
    for verify, words in CHECKS.items():
        with cls(structure_options(cls.Options, {"path": path, "read_only": True, "verify": verify})) as backend:

            def fetch_all(backend: Any = backend) -> None:
                for part in ids.split(reads.fetched):
                    backend.fetch(SPACE, part)

            first = timed(fetch_all, reads.clock)
            results[words] = _in_turn(backend, mapped, ids, picks, reads)
            results[words]["first"] = reads.count * payload[0].nbytes / first
    return {"chunk_bytes": payload[0].nbytes, "reads": results}


def _in_turn(backend: Any, mapped: Tensor, ids: Tensor, picks: Tensor, reads: Reads) -> dict[str, Any]:
    """Time fetches and copies by turns, in seconds per byte."""
    size = reads.fetched * mapped[0].nbytes
    mapped.sum()  # every page is there

    def copy(rows: Tensor) -> Tensor:
        copied = torch.empty(len(rows), mapped.shape[1], dtype=mapped.dtype)
        for place, row in enumerate(rows.tolist()):
            copied[place].copy_(mapped[row])
        return copied

    def read_ours(some: list[Tensor]) -> None:
        for pick in some:
            backend.fetch(SPACE, ids[pick])

    def read_plain(some: list[Tensor]) -> None:
        for pick in some:
            copy(pick)

    rows: list[tuple[float, ...]] = []
    begun, at = time.perf_counter(), 0
    while len(rows) < 5 or (len(rows) < 101 and time.perf_counter() - begun < reads.seconds):
        some = [picks[(at + step) % len(picks)] for step in range(16)]
        at += 16
        ways = [partial(read_ours, some), partial(read_plain, some)]
        times = {way: timed(ways[way], reads.clock) / len(some) / size for way in ((0, 1) if len(rows) % 2 else (1, 0))}
        rows.append((times[0], times[1]))
    return compared(rows, {"ours": 0, "raw": 1})


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure(Reads(**json.loads(sys.argv[1])))))
