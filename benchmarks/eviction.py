"""How often what is wanted is still there, per eviction policy, on a skewed stream of accesses that drifts.

    python benchmarks/eviction.py

Chunks come in one after the other and fill a bank several times over. After each, past chunks are asked for, forgotten
ones too: some of the time any of them, evenly, and else one of a hot set, by Zipf's law. By and by other chunks, new
ones for the most part, take the places of the hot set. A bank is asked by the chunk's own vector, so a hit is found and
counted as used; a miss finds another chunk, which is counted instead, as in earnest. Every policy sees the same
streams. Hit rates are over all accesses after the bank was first full: median of the seeds, in brackets the lowest and
highest.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import attrs
import torch
import typer
from machine import console as machine_console
from machine import save, spread
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from memcore.bank import MemoryBank
from memcore.chunk import ChunkBatch
from memcore.eviction import EvictionPolicy
from memcore.eviction_policies import FifoEviction, LfuEviction, LruEviction, MemLongEviction
from memcore.exact_backend import ExactBackend, ExactOptions

POLICIES: Final[dict[str, type[EvictionPolicy]]] = {
    "memlong": MemLongEviction,
    "fifo": FifoEviction,
    "lru": LruEviction,
    "lfu": LfuEviction,
}
SPACE: Final = "layer"
SIZE: Final = 32


@attrs.frozen(kw_only=True)
class Stream:
    """A stream of chunks and accesses.

    Attributes:
        chunks: that come in.
        accesses: after each chunk.
        hot: chunks in the hot set.
        skew: exponent of Zipf's law over their ranks.
        evenly: share of accesses that go to any past chunk.
        drift: share of the hot set that is replaced while as many chunks come in as it has.
        fresh: share of what replaces them that is new; the rest are any past chunks.
    """

    chunks: int
    accesses: int
    hot: int
    skew: float
    drift: float
    evenly: float = 0.1
    fresh: float = 0.7

    def steps(self, seed: int) -> Iterator[tuple[int, list[int]]]:
        """Yield each chunk's number and the numbers of the past chunks asked for after it came."""
        generator = torch.Generator().manual_seed(seed)
        shares = torch.arange(1, self.hot + 1).double().pow(-self.skew)
        hot: list[int] = []
        for number in range(self.chunks):
            if len(hot) < self.hot:
                hot.append(number)
            elif _random(generator) < self.drift:
                new = number if _random(generator) < self.fresh else _below(number, generator)
                hot[_below(self.hot, generator)] = new
            ranks = torch.multinomial(shares[: len(hot)], self.accesses, replacement=True, generator=generator)
            wanted = [
                _below(number + 1, generator) if _random(generator) < self.evenly else hot[rank]
                for rank in ranks.tolist()
            ]
            yield number, wanted


def hit_rate(policy: EvictionPolicy, stream: Stream, capacity: int, seed: int) -> float:
    """Return the share of accesses to chunks that the bank still held, once it was full."""
    vectors = torch.nn.functional.normalize(
        torch.randn(stream.chunks, SIZE, generator=torch.Generator().manual_seed(seed))
    )
    hits = asked = 0
    with contextlib.closing(MemoryBank(ExactBackend(ExactOptions()), policy, capacity=capacity)) as bank:
        for number, wanted in stream.steps(seed):
            bank.store(SPACE, _chunk(vectors[number]))
            held = set(bank.ids(SPACE).tolist())
            for past in wanted:
                bank.retrieve(SPACE, vectors[past][None], 1)
            if number >= capacity:
                hits += sum(past in held for past in wanted)
                asked += len(wanted)
    return hits / asked


def _chunk(vector: Tensor) -> ChunkBatch:
    return ChunkBatch(
        embeddings=vector.view(1, 1, SIZE),
        keys=torch.zeros(1, 1, 1, 1),
        values=torch.zeros(1, 1, 1, 1),
        starts=torch.zeros(1, dtype=torch.int64),
        lengths=torch.ones(1, dtype=torch.int64),
        token_ids=torch.zeros(1, 1, dtype=torch.int64),
    )


def _random(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))


def main(
    capacity: Annotated[int, typer.Option(help="Chunks that the bank may hold.")] = 150,
    chunks: Annotated[int, typer.Option(help="Chunks that come in.")] = 1200,
    accesses: Annotated[int, typer.Option(help="Accesses after each chunk.")] = 3,
    skew: Annotated[list[float], typer.Option(help="Exponents of Zipf's law.")] = [0.6, 1.0, 1.4],  # noqa: B006
    drift: Annotated[list[float], typer.Option(help="Shares of the hot set replaced.")] = [0.1, 0.5],  # noqa: B006
    seeds: Annotated[int, typer.Option(help="Streams of each kind.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="Hardly anything, to see that it runs.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
) -> None:
    """Compare the eviction policies."""
    if quick:
        capacity, chunks, accesses, seeds = 20, 80, 2, 2
    torch.set_num_threads(1)
    settings = {"capacity": capacity, "chunks": chunks, "accesses": accesses, "seeds": seeds}
    console = machine_console()
    results: dict[str, dict[str, list[float]]] = {}
    table = Table("skew", "drift", *POLICIES, title=f"hit rate, %, {chunks:,} chunks through a bank of {capacity}")
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(skew) * len(drift) * len(POLICIES) * seeds)
        for exponent in skew:
            for moved in drift:
                stream = Stream(chunks=chunks, accesses=accesses, hot=capacity // 2, skew=exponent, drift=moved)
                rates: dict[str, list[float]] = {name: [] for name in POLICIES}
                for name, policy in POLICIES.items():
                    for seed in range(seeds):
                        progress.update(task, description=f"{name}, skew {exponent}, drift {moved}")
                        rates[name].append(100 * hit_rate(policy(), stream, capacity, seed))
                        progress.advance(task)
                results[f"skew {exponent}, drift {moved}"] = rates
                save(json_file, "eviction", settings, results)
                best = max(statistics.median(own) for own in rates.values())
                row = [spread(own) for own in rates.values()]
                marked = [
                    f"[bold]{cell}[/]" if statistics.median(own) == best else cell
                    for cell, own in zip(row, rates.values(), strict=True)
                ]
                table.add_row(f"{exponent}", f"{moved}", *marked)
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
