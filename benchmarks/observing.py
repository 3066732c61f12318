"""What it costs that somebody could watch a memory, and what it costs when somebody does.

    python benchmarks/observing.py

A bank with the exact backend stores a chunk, and retrieves 8 of those that it holds, again and again: with hooks that
nobody implements and a log that nobody reads, as is the default; with a plugin that counts; with the log of every call
as JSON. The ways take turns, call by call. Every round begins anew with as many chunks, and each store adds one. Below
that, what only observing adds to a call while nobody watches, measured by itself. Microseconds of the processor: median
of the rounds, whose own are medians, in brackets the lowest and highest.
"""

from __future__ import annotations

import contextlib
import logging
import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter, thread_time
from typing import Annotated, Any

import torch
import typer
from machine import console as machine_console
from machine import save, spread
from pythonjsonlogger.json import JsonFormatter
from rich.table import Table

from memcore import events, hookimpl
from memcore.bank import MemoryBank
from memcore.chunk import ChunkBatch
from memcore.eviction_policies import FifoEviction
from memcore.exact_backend import ExactBackend, ExactOptions
from memcore.log_event import ROOT
from memcore.plugin_hooks import PluginHooks
from memcore.plugins import PluginRegistry

SPACE = "layer"
SIZE = 64


class Counter:
    """A plugin that adds up what it is told."""

    def __init__(self) -> None:
        self.bytes = 0
        self.seconds = 0.0

    @hookimpl
    def memcore_stored(self, nbytes: int, seconds: float) -> None:
        """Count what was stored."""
        self.bytes += nbytes
        self.seconds += seconds

    @hookimpl
    def memcore_retrieved(self, nbytes: int, seconds: float) -> None:
        """Count what came back."""
        self.bytes += nbytes
        self.seconds += seconds


def bank_with(plugin: object | None, chunks: int) -> MemoryBank:
    """Return a bank that holds chunks, with the hooks that a wrapped model has."""
    registry = PluginRegistry()
    if plugin is not None:
        registry.register(plugin, "counter")
    hooks = PluginHooks(registry, backend="exact")
    bank = MemoryBank(ExactBackend(ExactOptions()), FifoEviction(), capacity=None, hooks=hooks)
    bank.store(SPACE, some(chunks))
    return bank


def some(count: int) -> ChunkBatch:
    """Return chunks of 64 tokens, as a model with one key/value head of 64 has them."""
    generator = torch.Generator().manual_seed(count)
    return ChunkBatch(
        embeddings=torch.randn(count, 8, SIZE, generator=generator),
        keys=torch.randn(count, 1, 64, SIZE, generator=generator).bfloat16(),
        values=torch.randn(count, 1, 64, SIZE, generator=generator).bfloat16(),
        starts=64 * torch.arange(count),
        lengths=torch.full((count,), 64),
        token_ids=torch.zeros(count, 64, dtype=torch.int64),
    )


@contextlib.contextmanager
def log_read() -> Iterator[None]:
    """Write everything that is logged as JSON, to nowhere."""
    logger = logging.getLogger(ROOT)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        handler = logging.StreamHandler(nowhere)
        handler.setFormatter(JsonFormatter("%(levelname)s %(name)s %(message)s", timestamp="time"))
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        try:
            yield
        finally:
            logger.setLevel(logging.NOTSET)
            logger.removeHandler(handler)


def timed(call: Callable[[], Any]) -> float:
    """Return the microseconds that the processor is at work for a call."""
    begun = thread_time()
    call()
    return 1e6 * (thread_time() - begun)


def calls(chunks: int, rounds: int, per_round: int) -> dict[str, dict[str, list[float]]]:
    """Return the median of each round of each call, in each way."""
    ways: dict[str, tuple[object | None, Callable[[], contextlib.AbstractContextManager[None]]]] = {
        "nobody watches": (None, contextlib.nullcontext),
        "a plugin counts": (Counter(), contextlib.nullcontext),
        "the log as JSON": (None, log_read),
    }
    one, queries = some(1), torch.randn(1, SIZE, generator=torch.Generator().manual_seed(0))
    found: dict[str, dict[str, list[float]]] = {
        "store": {way: [] for way in ways},
        "retrieve": {way: [] for way in ways},
    }
    for _ in range(rounds):
        banks = {way: bank_with(plugin, chunks) for way, (plugin, _) in ways.items()}
        taken: dict[str, dict[str, list[float]]] = {what: {way: [] for way in ways} for what in found}
        for _ in range(per_round):
            for way, (_, watching) in ways.items():
                bank = banks[way]
                with watching():
                    taken["store"][way].append(timed(lambda bank=bank: bank.store(SPACE, one)))  # type: ignore[misc]
                    taken["retrieve"][way].append(timed(lambda bank=bank: bank.retrieve(SPACE, queries, 8)))  # type: ignore[misc]
        for what, own in taken.items():
            for way, times in own.items():
                found[what][way].append(statistics.median(times))
    return found


def additions(rounds: int, per_round: int) -> dict[str, list[float]]:
    """Return what a call does for observers alone while there are none."""
    hooks, chunks, ids = PluginHooks(PluginRegistry(), backend="exact"), some(1), torch.zeros(1, dtype=torch.int64)

    def measure_and_tell() -> None:
        begun = perf_counter()
        seconds = perf_counter() - begun
        if events.BANK_STORED.wanted:
            raise AssertionError("somebody reads the log")
        hooks.stored(SPACE, ids.clone(), chunks, count=1, seconds=seconds)

    def alone(call: Callable[[], Any]) -> float:
        return timed(lambda: [call() for _ in range(per_round)]) / per_round

    return {
        "clock, log, hooks": [alone(measure_and_tell) for _ in range(rounds)],
        "of these the log": [alone(lambda: events.BANK_STORED.wanted) for _ in range(rounds)],
    }


def main(
    chunks: Annotated[int, typer.Option(help="Chunks that the bank holds.")] = 500,
    rounds: Annotated[int, typer.Option(help="Rounds.")] = 10,
    per_round: Annotated[int, typer.Option(help="Calls a round.")] = 200,
    quick: Annotated[bool, typer.Option("--quick", help="Hardly anything, to see that it runs.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
) -> None:
    """Measure what observing costs."""
    if quick:
        chunks, rounds, per_round = 20, 2, 3
    torch.set_num_threads(1)
    found = calls(chunks, rounds, per_round)
    added = additions(rounds, 100 * per_round)
    save(
        json_file, "observing", {"chunks": chunks, "rounds": rounds, "per_round": per_round}, {**found, "added": added}
    )
    console = machine_console()
    title = f"microseconds, {chunks:,} to {chunks + per_round:,} chunks in the bank"
    table = Table("call", *found["store"], title=title)
    for what, ways in found.items():
        table.add_row(what, *(spread(times) for times in ways.values()))
    console.print(table)
    table = Table("while nobody watches", "microseconds a call")
    for what, times in added.items():
        table.add_row(what, spread(times))
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
