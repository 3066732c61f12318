"""Every installed backend against its raw library and against brute force in torch, with one thread.

    python benchmarks/backends.py --json results/backends.json

Vectors are normalised and clustered (around N / 100 centres, with noise of 0.8), one per chunk, each with a payload of
16 KiB. Stores and searches of the backend and of the raw library take turns, so that a machine that slows down slows
both; ratios are medians of pairs, in brackets the smallest and largest. "Store" counts the copy of the payload, which
the raw side copies into tensors of the right size, and building the index, which memcore's backends leave to the first
search. What the raw side is in each case, ``raw_libraries.py`` says; with ``--checked`` it also does the least of what
memcore promises beside a search (``checked_libraries.py``), which is what a call can cost at best.

Each cell is measured in a process of its own, and with ``--json`` written down when it is done; started again, the rest
is measured, and a file of other settings is refused. ``--cpu`` pins the processes to one core. ``--clock cpu`` counts
the time that a process runs, for machines that do something else as well; ``lmdb`` waits for the disk and keeps to the
wall clock.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from machine import console as machine_console
from process import measured
from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from memcore.evaluation.record import Record

NEEDS: Final = {
    "exact": "torch",
    "hnswlib": "hnswlib",
    "faiss flat": "faiss",
    "faiss ivf": "faiss",
    "faiss hnsw": "faiss",
    "lmdb": "lmdb",
}
"""Ways to keep chunks, and the module that each needs."""

READS: Final = "payload reads"


def cells(ways: list[str], counts: list[int], sizes: list[int]) -> list[tuple[str, str, dict[str, Any]]]:
    """Return key, script and arguments of each cell, the quick ones first."""
    made = [
        (f"{way}, {count}, {size}", "backend_cell.py", {"way": way, "count": count, "size": size})
        for count in counts
        for size in sizes
        for way in ways
    ]
    if "lmdb" in ways:
        made[:0] = [(f"{READS} of {fetched}", "payload_reads.py", {"fetched": fetched}) for fetched in (8, 32, 64)]
    return made


def show(console: Console, results: dict[str, Any]) -> None:
    """Print the tables, in Markdown."""
    for task, one in (("store", "chunk"), ("retrieve", "query")):
        cells = {key: result for key, result in results.items() if task in result}
        batches = list(next(iter(cells.values()))[task]) if cells else []
        columns = ["", "N", "d", *(["recall@8"] if task == "retrieve" else [])]
        for batch in batches:
            rates = [f"{task} {batch}", "raw", *(["torch"] if task == "retrieve" else [])]
            columns += [*rates, "ours / raw"]
        table = Table(*columns, box=MARKDOWN, title=f"{task}: per second, 1 {one} or more at a time")
        for key, result in cells.items():
            way, count, size = key.split(", ")
            row = [f"`{way}`", f"{int(count):,}", f"{int(size):,}"]
            row += [f"{result['recall']['ours']:.3f}"] if task == "retrieve" else []
            for numbers in result[task].values():
                row += [f"{numbers[name]:,.0f}" for name in ("ours", "raw", "torch") if name in numbers]
                row.append(_ratio(numbers))
            table.add_row(*row)
        console.print(table)
    columns = ["chunks a fetch", "checksums compared", "GB/s", "the first time", "plain copy", "ours / copy"]
    table = Table(*columns, box=MARKDOWN, title="lmdb: reads of 128 KiB a chunk from the page cache")
    for key, result in results.items():
        for words, numbers in result.get("reads", {}).items():
            rates = [f"{numbers[name] / 1e9:.1f}" for name in ("ours", "first", "raw")]
            table.add_row(key.split()[-1], words, *rates, _ratio(numbers))
    if table.row_count:
        console.print(table)
    for key, result in results.items():
        if "error" in result:
            console.print(f"{key}: {result['error']}", style="red")


def _ratio(numbers: dict[str, Any]) -> str:
    low, high = numbers["ratios"]
    return f"{numbers['ratio']:.2f} ({low:.2f} – {high:.2f})"


def main(
    way: Annotated[list[str], typer.Option(help="Backends; all that are installed if left out.")] = [],  # noqa: B006
    count: Annotated[list[int], typer.Option(help="Chunks stored.")] = [1_000, 10_000, 100_000],  # noqa: B006
    size: Annotated[list[int], typer.Option(help="Numbers per vector.")] = [256, 1024],  # noqa: B006
    batch: Annotated[list[int], typer.Option(help="Chunks per store, queries per search.")] = [1, 32],  # noqa: B006
    seconds: Annotated[float, typer.Option(help="About how long to repeat each measurement.")] = 2.0,
    cpu: Annotated[int | None, typer.Option(help="Core to measure on.")] = None,
    clock: Annotated[str, typer.Option(help="wall, or cpu where others use the machine, too.")] = "wall",
    checked: Annotated[
        bool, typer.Option("--checked", help="The raw side checks and keeps what memcore has to, too.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Hardly anything, to see that it runs.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the results here, and go on from there.")
    ] = None,
) -> None:
    """Measure the backends."""
    unknown = set(way) - set(NEEDS)
    if unknown:
        raise typer.BadParameter(f"no {', '.join(sorted(unknown))} among {', '.join(NEEDS)}")
    if clock not in ("wall", "cpu"):
        raise typer.BadParameter(f"the clock is wall or cpu, got {clock}")
    ways = way or [name for name, module in NEEDS.items() if importlib.util.find_spec(module)]
    settings: dict[str, Any] = {"batches": batch, "tokens": 64, "seconds": seconds, "cpu": cpu, "clock": clock}
    settings["checked"] = checked
    reads: dict[str, Any] = {"count": 2000, "tokens": 128, "seconds": seconds, "clock": clock}
    if quick:
        count, size = [600], [32]
        settings["seconds"] = reads["seconds"] = 0.05
        reads["count"] = 40
    record = None if json_file is None else Record(json_file, "backends", {**settings, "reads": reads})
    results: dict[str, Any] = {} if record is None else record.results
    console = machine_console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        wanted = cells(ways, count, size)
        task = progress.add_task("", total=len(wanted))
        for key, script, what in wanted:
            progress.update(task, description=key)
            if "error" in results.get(key, {"error": ""}):
                given = (reads if script == "payload_reads.py" else settings) | what
                if what.get("way") == "lmdb":
                    given = given | {"clock": "wall"}
                result = measured(
                    script,
                    {k: v for k, v in given.items() if k != "cpu"},
                    environment={"OMP_NUM_THREADS": "1"},
                    prepare=None if cpu is None else functools.partial(os.sched_setaffinity, 0, {cpu}),
                )
                results[key] = result
                if record is not None:
                    record.add(key, result)
            progress.advance(task)
    show(console, results)
    if any("error" in result for result in results.values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
