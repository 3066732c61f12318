"""One backend with so many vectors of one size, beside its raw library: run by ``backends.py`` in its own process.

    python benchmarks/backend_cell.py '{"way": "hnswlib", "count": 10000, "size": 256, ...}'

Thread pools of different libraries disturb each other, so no process uses more than one of them, with one thread.
The result is one line of JSON on standard output.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import attrs
import psutil
import torch
from checked_libraries import checked
from raw_libraries import RAW, RawLibrary
from torch import Tensor

from memcore.backend import MemoryBackend, PersistentBackend
from memcore.chunk import ChunkBatch
from memcore.options import structure_options
from memcore.plugins import registry
from memcore.reserved import reserve

TOP_K: Final = 8
SPACE: Final = "layer"
GRAPHS: Final = ("hnswlib", "faiss hnsw")
SETTINGS: Final[dict[str, Any]] = {"M": 16, "ef_construction": 100, "ef": 256}
OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "exact": {},
    "hnswlib": {**SETTINGS, "exact_below": 0},
    "faiss flat": {"index": "flat", "device": "cpu", "exact_below": 0},
    "faiss ivf": {"index": "ivf", "device": "cpu", "exact_below": 0},
    "faiss hnsw": {"index": "hnsw", "device": "cpu", "exact_below": 0, **SETTINGS},
    "lmdb": {},
}


@attrs.frozen(kw_only=True)
class Cell:
    """What to measure.

    Attributes:
        way: key of ``OPTIONS``.
        count: chunks, one vector each.
        size: numbers per vector.
        batches: chunks per store and queries per retrieve, each measured on its own.
        tokens: per chunk, of one head with 64 numbers in bfloat16: 256 bytes each for key and value.
        seconds: about how long to repeat what can be repeated.
        clock: ``"wall"``, or ``"cpu"`` for a machine that is busy with something else: the time that this process
            ran, which leaves out waiting for a disk, too.
        checked: whether the raw library is used as carefully as memcore has to, see ``checked_libraries.py``.
        folder: for files.
    """

    way: str
    count: int
    size: int
    batches: list[int]
    tokens: int
    seconds: float
    clock: str
    checked: bool
    folder: str


def clustered(count: int, size: int, queries: int) -> tuple[Tensor, Tensor]:
    """Return normalised vectors and queries around ``count / 100`` centres, with noise of 0.8."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(max(1, count // 100), size, generator=generator)
    drawn = torch.randn(count + queries, size, generator=generator).mul_(0.8)
    drawn += centres[torch.randint(len(centres), (count + queries,), generator=generator)]
    drawn = torch.nn.functional.normalize(drawn)
    return drawn[:count], drawn[count:]


class Bench:
    """A cell's data, and what is measured on it."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.vectors, self.queries = clustered(cell.count, cell.size, 256)
        widest = max(cell.batches)
        generator = torch.Generator().manual_seed(1)
        shape = (widest, 1, cell.tokens, 64)
        self.keys = torch.randn(shape, generator=generator).to(torch.bfloat16)
        self.values = torch.randn(shape, generator=generator).to(torch.bfloat16)
        self.settings = dict(SETTINGS)

    def open(self, folder: Path) -> MemoryBackend:
        """Return an empty backend."""
        cls = registry().load_component("backends", self.cell.way.split()[0])
        options = dict(OPTIONS[self.cell.way])
        if issubclass(cls, PersistentBackend):
            options["path"] = folder / "memory"
        return cls(structure_options(cls.Options, options))

    def raw(self, folder: Path) -> RawLibrary:
        """Return the raw library, empty."""
        raw = RAW[self.cell.way](self.cell.size, self.cell.count, self.settings, folder)
        return checked(raw) if self.cell.checked else raw

    def batch(self, first: int, last: int) -> ChunkBatch:
        """Return some of the chunks."""
        count, tokens = last - first, self.cell.tokens
        return ChunkBatch(
            embeddings=self.vectors[first:last, None],
            keys=self.keys[:count],
            values=self.values[:count],
            starts=torch.arange(first, last) * tokens,
            lengths=torch.full((count,), tokens),
            token_ids=torch.zeros(count, tokens, dtype=torch.int64),
        )

    def fill(
        self, ours: MemoryBackend, raw: RawLibrary, sizes: list[int], *, finish_each: bool
    ) -> Iterator[tuple[int, int, float, float]]:
        """Store everything in both, a slice here and the same there, and yield the seconds that each took.

        Args:
            ours: an empty backend.
            raw: its raw library, empty.
            sizes: chunks per call, by turns from slice to slice.
            finish_each: whether the index is brought up to date after each slice, and not only after all.

        Yields:
            Chunks per call, chunks in the slice (0 for what comes after the last), and seconds of ours and of raw.
        """
        slices = max(2 * len(sizes), min(20, self.cell.count // 256))
        bounds = torch.linspace(0, self.cell.count, slices + 1).long().tolist()
        for turn, (first, last) in enumerate(itertools.pairwise(bounds)):
            size = sizes[turn % len(sizes)]
            batches = [self.batch(at, min(at + size, last)) for at in range(first, last, size)]

            def store_ours(batches: list[ChunkBatch] = batches) -> None:
                for chunks in batches:
                    ours.store(SPACE, chunks)
                if finish_each:
                    self.finish(ours)

            def store_raw(batches: list[ChunkBatch] = batches) -> None:
                for chunks in batches:
                    raw.store(chunks)
                if finish_each:
                    raw.finish()

            yield size, last - first, *in_turn(store_ours, store_raw, turn // len(sizes), self.cell.clock)
        if not finish_each:
            yield sizes[0], 0, *in_turn(lambda: self.finish(ours), raw.finish, 0, self.cell.clock)

    def finish(self, backend: MemoryBackend) -> None:
        """Do what is left to do before a search can be answered at once, or a crash loses nothing."""
        if isinstance(backend, PersistentBackend):
            backend.flush()
        elif self.cell.way != "exact":
            backend.retrieve(SPACE, self.queries[:1], TOP_K)  # brings the index up to date

    def store(self) -> tuple[dict[str, Any], MemoryBackend, RawLibrary]:
        """Measure storing; return the result and both, full."""
        rounds: dict[int, list[tuple[float, ...]]] = {size: [] for size in self.cell.batches}
        is_graph = self.cell.way in GRAPHS
        # Building a graph takes minutes, so slices of one are what is repeated, of both sizes by turns.
        kinds = [self.cell.batches] if is_graph else [[size] for size in self.cell.batches]
        begun, repeats = time.perf_counter(), 0
        while True:
            for sizes in kinds:
                folder = self.folder()
                ours, raw = self.open(folder), self.raw(folder)
                times = list(self.fill(ours, raw, sizes, finish_each=is_graph))
                if is_graph:
                    for size, count, own, other in times:
                        rounds[size].append((own / count, other / count))
                else:
                    own, other = (sum(column) / self.cell.count for column in list(zip(*times, strict=True))[2:])
                    rounds[sizes[0]].append((own, other))
                if sizes != kinds[-1]:
                    ours.close()
                    raw.close()
            spent, repeats = time.perf_counter() - begun, repeats + 1
            if (
                repeats >= 9
                or spent > self.cell.seconds * (1 if repeats >= 3 else 15)
                or (is_graph and spent > 2 * self.cell.seconds)
            ):
                break
            ours.close()
            raw.close()
        return {str(size): compared(pairs, {"ours": 0, "raw": 1}) for size, pairs in rounds.items()}, ours, raw

    def retrieve(self, ours: MemoryBackend, raw: RawLibrary) -> dict[str, Any]:
        """Measure searching, with the raw library and with brute force by turns."""
        ways: list[Callable[[Tensor], object]] = [
            lambda queries: ours.retrieve(SPACE, queries, TOP_K),
            lambda queries: raw.search(queries, TOP_K),
            lambda queries: (queries @ self.vectors.T).topk(TOP_K, dim=1),
        ]
        return {str(size): self._search_in_turn(ways, size) for size in self.cell.batches}

    def _search_in_turn(self, ways: list[Callable[[Tensor], object]], size: int) -> dict[str, Any]:
        asked = self.queries.split(size)

        def seconds_per_query(at: int, calls: int) -> float:
            def run() -> None:
                for call in range(calls):
                    ways[at](asked[call % len(asked)])

            return max(timed(run, self.cell.clock), 1e-9) / calls / size

        calls = []
        for at in range(len(ways)):
            seconds_per_query(at, 3)  # warms up
            calls.append(max(1, min(1000, round(0.02 / (size * seconds_per_query(at, 3))))))
        calls[:2] = [max(calls[:2])] * 2
        rows: list[tuple[float, ...]] = []
        begun = time.perf_counter()
        while len(rows) < 5 or (len(rows) < 31 and time.perf_counter() - begun < self.cell.seconds):
            order = [(at + len(rows)) % len(ways) for at in range(len(ways))]
            times = {at: seconds_per_query(at, calls[at]) for at in order}
            rows.append(tuple(times[at] for at in range(len(ways))))
        return compared(rows, {"ours": 0, "raw": 1, "torch": 2})

    def recall(self, ours: MemoryBackend, raw: RawLibrary) -> dict[str, float]:
        """Return the share of the best that is found."""
        best = (self.queries @ self.vectors.T).topk(TOP_K, dim=1).indices
        found = {"ours": ours.retrieve(SPACE, self.queries, TOP_K).ids, "raw": raw.search(self.queries, TOP_K)}
        return {
            name: float((ids[:, :, None] == best[:, None, :]).any(dim=2).float().mean()) for name, ids in found.items()
        }

    def folder(self) -> Path:
        """Return an empty folder."""
        return Path(tempfile.mkdtemp(dir=self.cell.folder))


def always_take_new_memory() -> None:
    """Have large tensors filled with memory from the system, as when a memory grows, and not with what others left."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD, which would otherwise rise by and by


def touch(count: int) -> None:
    """Use as many bytes once: a virtual machine may get its memory from the host only then, which takes long.

    Once in huge pages, which memcore's tables lie in, and once in small ones, as the raw libraries' memory does: they
    need not be the same bytes.
    """
    size = min(count, psutil.virtual_memory().available // 2)
    reserve((size,), torch.uint8, torch.device("cpu")).zero_()
    torch.empty(size, dtype=torch.uint8).zero_()


def in_turn(ours: Callable[[], object], raw: Callable[[], object], turn: int, clock: str) -> tuple[float, float]:
    """Run both, the other one first every second time; return the seconds of each."""
    if turn % 2:
        other = timed(raw, clock)
        return timed(ours, clock), other
    return timed(ours, clock), timed(raw, clock)


def timed(run: Callable[[], object], clock: str) -> float:
    """Return the seconds that a call takes."""
    now = time.process_time if clock == "cpu" else time.perf_counter
    begun = now()
    run()
    return now() - begun


def compared(rows: list[tuple[float, ...]], places: dict[str, int]) -> dict[str, Any]:
    """Return medians of things per second, and the ratio of ours to raw with its smallest and largest value."""
    ratios = [row[places["raw"]] / row[places["ours"]] for row in rows]
    rates = {name: 1 / statistics.median(row[at] for row in rows) for name, at in places.items()}
    return {**rates, "ratio": statistics.median(ratios), "ratios": [min(ratios), max(ratios)], "repeats": len(rows)}


def measure(cell: Cell) -> dict[str, Any]:
    """Measure a cell."""
    Bench(attrs.evolve(cell, count=300, size=16, seconds=0)).store()  # the first calls of everything are slow
    touch(cell.count * (12 * cell.size + 4 * 256 * cell.tokens))
    bench = Bench(cell)
    stored, ours, raw = bench.store()
    bench.finish(ours)
    ours.retrieve(SPACE, bench.queries, TOP_K)
    if cell.way == "faiss ivf":
        bench.settings["nprobe"] = raw.settings["nprobe"] = ours._namespaces[SPACE].index.vectors.probes  # type: ignore[attr-defined]
    result = {"store": stored, "retrieve": bench.retrieve(ours, raw), "recall": bench.recall(ours, raw)}
    ours.close()
    raw.close()
    return result


if __name__ == "__main__":
    torch.set_num_threads(1)
    always_take_new_memory()
    print(json.dumps(measure(Cell(**json.loads(sys.argv[1])))))
