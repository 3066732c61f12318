"""Soaks every backend for as long as one likes, and says what the process took meanwhile.

make soak MINUTES=60
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from time import monotonic
from typing import Annotated, Final

import torch
import typer
from rich.console import Console
from rich.table import Table

from reliability.levelness import Bounds, Sample, measure, problems, trend, without_what_was_imported
from reliability.opening import INSTALLED
from reliability.soaking import Soak

BOUNDS: Final = Bounds(memory=8 << 20, disk=2 << 20)

_SHARES: Final = {"lmdb": 4, "lmdb, never compacted": 4, "hnswlib": 2, "faiss": 1, "exact": 1}
"""Of the time, for each run."""

_SAMPLES: Final = 300
"""Of each run."""

console = Console(width=120, soft_wrap=True)


def main(
    minutes: Annotated[float, typer.Option(help="How long, all backends together.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Of the calls.")] = 0,
) -> None:
    """Make random calls on each backend in turn, and compare what they do with a dictionary."""
    torch.set_num_threads(1)
    shares = {run: share for run, share in _SHARES.items() if run.partition(",")[0] in INSTALLED}
    console.print(f"{minutes:g} minutes, seed {seed}; the first third of each run is for warming up")
    failed = False
    for run, share in shares.items():
        seconds = 60 * minutes * share / sum(shares.values())
        name, _, rest = run.partition(",")
        with tempfile.TemporaryDirectory() as folder, without_what_was_imported():
            soak = Soak(name, Path(folder) / "memory", seed=seed, compacting=not rest)
            samples = _run(soak, seconds)
            soak.check()
            soak.close()
        found = problems(samples, BOUNDS)
        failed |= bool(found)
        console.print(_table(run, seconds, soak, samples))
        for problem in found:
            console.print(problem, style="red")
    raise typer.Exit(int(failed))


def _run(soak: Soak, seconds: float) -> list[Sample]:
    begun = monotonic()
    calls = 0
    samples: list[Sample] = []
    while (now := monotonic() - begun) < seconds:
        soak.step()
        calls += 1
        if now >= seconds * len(samples) / _SAMPLES:
            samples.append(measure(calls, soak.disk_bytes))
    return samples


def _table(run: str, seconds: float, soak: Soak, samples: list[Sample]) -> Table:
    calls = sum(soak.calls.values())
    counted = ", ".join(f"{count:,} {kind}" for kind, count in sorted(soak.calls.items()))
    title = f"{run}: {calls:,} calls in {seconds / 60:.1f} minutes ({counted}), {soak.evicted:,} chunks evicted"
    table = Table("", "most, second third", "most, last third", "rise of the line", title=title, title_justify="left")
    for field, scale in (("memory", 1 << 20), ("disk", 1 << 20), ("files", 1), ("threads", 1)):
        seen = trend(samples, field)
        unit, digits = (" MiB", 2) if scale > 1 else ("", 0)
        row = (seen.before / scale, seen.after / scale, seen.rise / scale)
        table.add_row(field, *(f"{value:,.{digits}f}{unit}" for value in row))
    return table


if __name__ == "__main__":
    typer.run(main)
