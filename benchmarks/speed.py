"""What memory costs while everything fits, and what it saves when it does not.

    python benchmarks/speed.py --tokens 32000

Inside the window the plain and the wrapped model take turns, so that a machine that slows down slows both. Long prompts
are read by the wrapped model and by full attention: at once, and in pieces of 1,024 tokens, as one does by hand to save
memory, and which is faster on a CPU. Ratios are of the medians, in brackets the smallest and largest time. Of a
generated token it is also said how much of its time is memory's own work: choosing, fetching and joining chunks, and
moving what leaves the window. The rest is the model's, attention to what was retrieved included.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import torch
import typer
from machine import console as machine_console
from machine import save, spread
from rich.table import Table
from torch import Tensor
from transformers import DynamicCache

import memcore
from memcore import MemoryConfig
from memcore.cache import MemoryCache
from memcore.cli.settings import SetOption, memory_config
from memcore.demo.text import language_reference
from memcore.evaluation.machine import describe_machine
from memcore.evaluation.ways import PIECE
from memcore.memory_layer import MemoryLayer
from memcore.model_source import load_model
from memcore.prompt import encode


def timed(run: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    begun = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


OWN_WORK: Final = ((MemoryLayer, "attend"), (MemoryCache, "begin"), (MemoryCache, "finish"))
"""What memory does of its own in a forward pass: none of these computes anything of the model."""


@contextmanager
def own_work() -> Iterator[list[float]]:
    """Give a list to which the seconds of each piece of memory's own work are added, while in this context."""
    took: list[float] = []
    before = [(owner, name, getattr(owner, name)) for owner, name in OWN_WORK]
    for owner, name, method in before:

        def call(*args: Any, method: Any = method, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                took.append(time.perf_counter() - begun)

        setattr(owner, name, functools.wraps(method)(call))
    try:
        yield took
    finally:
        for owner, name, method in before:
            setattr(owner, name, method)


def prefill(model: Any, ids: Tensor) -> Any:
    """Read a prompt in one call and return the cache."""
    return model(ids, use_cache=True, logits_to_keep=1).past_key_values


def prefill_in_pieces(model: Any, ids: Tensor, *, offloading: bool = False) -> Any:
    """Read a prompt piece by piece and return the cache.

    Args:
        model: not wrapped.
        ids: ``[1, T]`` token ids.
        offloading: whether the cache is on the CPU but for the layer under way; needs a GPU.
    """
    cache = DynamicCache(config=model.config, offloading=offloading)
    for part in ids.split(PIECE, dim=1):
        model(input_ids=part, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def decode(model: Any, cache: Any, token: Tensor, steps: int) -> list[float]:
    """Return the seconds of each of ``steps`` decode steps."""
    return [timed(lambda: model(token, past_key_values=cache, use_cache=True)) for _ in range(steps)]


@torch.no_grad()
def inside_the_window(model: Any, ids: Tensor, config: MemoryConfig, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Time forward and decode of plain and wrapped model in turns; everything fits the window."""
    prompt, token = ids[:, : config.window_length - 64], ids[:, :1]
    seconds: dict[str, dict[str, list[float]]] = {
        task: {"plain": [], "wrapped": []} for task in (f"forward of {prompt.shape[1]:,}", "decode")
    }
    forward = next(iter(seconds))
    for repeat in range(repeats + 1):
        for way in ("plain", "wrapped") if repeat % 2 else ("wrapped", "plain"):
            if way == "wrapped":
                memcore.wrap(model, config)
            took = timed(lambda: prefill(model, prompt))
            steps = decode(model, prefill(model, prompt), token, 24)
            if way == "wrapped":
                memcore.unwrap(model)
            if repeat:  # the first round warms up
                seconds[forward][way].append(took)
                seconds["decode"][way] += steps[4:]
    return seconds


@torch.no_grad()
def beyond_the_window(
    model: Any, ids: Tensor, config: MemoryConfig, repeats: int, backends: list[str], at_once: bool
) -> dict[str, Any]:
    """Time prefill and decode of a long prompt, with memory and with full attention."""
    token, results = ids[:, :1], {}
    full: dict[str, Callable[[Any, Tensor], Any]] = {f"full attention, pieces of {PIECE:,}": prefill_in_pieces}
    if at_once:
        full["full attention, at once"] = prefill
    for way in [f"memory, {name}" for name in backends] + list(full):
        took, steps, shares = [], [], []
        for _ in range(repeats):
            begun = time.perf_counter()
            if way in full:
                cache = full[way](model, ids)
            else:
                memcore.wrap(model, config, backend=way.removeprefix("memory, "))
                cache = prefill(model, ids)
            took.append(time.perf_counter() - begun)
            decode(model, cache, token, 4)  # warms up
            with own_work() as own:
                measured = decode(model, cache, token, 32)
            steps += measured
            del cache
            if way not in full:
                shares.append(sum(own) / sum(measured))
                memcore.unwrap(model)
        results[way] = {"prefill": took, "decode": steps, "own work": shares}
    return results


def main(
    model: Annotated[str, typer.Option(help="Hub id or folder; the demo model if left out.")] = "",
    tokens: Annotated[list[int], typer.Option(help="Lengths of long prompts.")] = [32_000],  # noqa: B006
    settings: SetOption = None,
    backend: Annotated[list[str], typer.Option(help="Backends to try.")] = ["exact"],  # noqa: B006
    dtype: Annotated[str, typer.Option(help="Weights and activations.")] = "float32",
    at_once: Annotated[bool, typer.Option(help="Also read by full attention in one piece, which takes long.")] = True,
    repeats: Annotated[int, typer.Option(help="Rounds inside the window.")] = 15,
    long_repeats: Annotated[int, typer.Option(help="Rounds of each long prompt.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
) -> None:
    """Time plain and wrapped models."""
    if not model:
        from memcore.demo.weights import demo_model_path

        model = str(demo_model_path())
    config = memory_config("", settings)
    plain, tokenizer = load_model(model, device="cpu", dtype=dtype)
    text = encode(tokenizer, language_reference(), special=False)[0].tolist()
    ids = torch.tensor([(text * (1 + max(tokens) // len(text)))[: max(tokens)]])
    console = machine_console()
    name = f"{Path(model).name}, {dtype}, window {config.window_length}"
    inside = inside_the_window(plain, ids, config, repeats)
    table = Table("inside the window", "plain s", "wrapped s", "wrapped / plain", title=name)
    for task, ways in inside.items():
        ratio = statistics.median(ways["wrapped"]) / statistics.median(ways["plain"])
        table.add_row(task, spread(ways["plain"]), spread(ways["wrapped"]), f"{ratio:.3f}")
    console.print(table)
    described = {"model": Path(model).name, "dtype": dtype, "config": config.to_dict()}
    results: dict[str, Any] = {"inside": inside}
    for length in tokens:
        beyond = results[f"{length}"] = beyond_the_window(
            plain, ids[:, :length], config, long_repeats, backend, at_once
        )
        save(json_file, "speed", described, results)
        columns = ("prefill s", "tok/s", "× memory", "decode ms/token", "memory's own work")
        table = Table(f"{length:,} tokens", *columns, title=name)
        first = statistics.median(next(iter(beyond.values()))["prefill"])
        for way, seconds in beyond.items():
            median = statistics.median(seconds["prefill"])
            milliseconds = [1000 * each for each in seconds["decode"]]
            table.add_row(
                way,
                spread(seconds["prefill"]),
                f"{length / median:.0f}",
                f"{median / first:.2f}",
                spread(milliseconds),
                f"{statistics.median(seconds['own work']):.1%}" if seconds["own work"] else "",
            )
        console.print(table)
    save(json_file, "speed", described, results)
    console.print(f"{describe_machine()}", style="dim")


if __name__ == "__main__":
    typer.run(main)
