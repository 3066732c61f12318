"""A model reads a very long text: tokens a second, time of a generated token and memory, all along the way.

    python benchmarks/long.py --tokens 32000 --tokens 128000
    python benchmarks/long.py --tokens 1000000 --way streaming --way memory:lmdb --set embedder=mean

Ways of reading: ``full`` (attention to everything, in pieces of 1,024 tokens), ``streaming`` (a window and the first
tokens), and ``memory:BACKEND``, all on the CPU. faiss and hnswlib search their index at any size (``exact_below=0``),
or shorter texts would only show exact search again. transformers' offloaded cache is for a GPU: ``gpu.py`` has it. Each
way is a process of its own. Memory is counted above the loaded model, and apart from it the pages of files that are
mapped: those of a memory on disk are page cache, which the system takes back when others need it.

Keys are hidden at several depths and asked for at the end, each in words of its own. A text that is shorter than what
is to be read is read again and again.

What is done is kept in ``--output``, and not done again. ``memory:lmdb`` goes on in the middle of a reading that was
interrupted, or stopped for ``--hours``; the others begin it again, or stay where they stopped.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from long_cell import PERSISTENT
from machine import console as machine_console
from machine import spread
from offloaded import NEEDS_GPU, OFFLOADED
from process import measured
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from tiny import small_setting

import memcore
from memcore.cli.settings import SetOption, memory_config
from memcore.config import MemoryConfig
from memcore.evaluation.machine import describe_machine
from memcore.evaluation.plots import panels
from memcore.evaluation.record import Record
from memcore.evaluation.ways import check_ways

WAYS: Final = ("full", OFFLOADED, "streaming", "memory:exact", "memory:faiss", "memory:hnswlib", PERSISTENT)

PANELS: Final = ("tokens/s", "ms per generated token", "MiB above the model, mapped files not counted")

OPTIONS: Final = {"faiss": {"exact_below": 0}, "hnswlib": {"exact_below": 0}}
"""Options of backends, unless ``--set`` says others."""


def left_out(way: str, config: MemoryConfig) -> str:
    """Return why a way of reading cannot be measured here; empty if it can."""
    if way == OFFLOADED:
        return NEEDS_GPU
    try:
        check_ways([way], config)
    except memcore.MissingDependencyError as error:
        return str(error)
    except memcore.ConfigError:  # a memory on disk has no path yet
        if way != PERSISTENT:
            raise
    return ""


def finished(way: str, result: Mapping[str, Any] | None) -> bool:
    """Return whether there is nothing left to do: a memory on disk that stopped in time goes on when asked again."""
    return result is not None and "error" not in result and not (result["stopped"] and way == PERSISTENT)


def at_checkpoints(result: Mapping[str, Any]) -> dict[int, tuple[float | None, float, float]]:
    """Return what the panels show, by tokens read."""
    return {
        int(tokens): (
            each["tokens_per_second"],
            statistics.median(each["decode_ms"]),
            each["most"]["anonymous"] / 2**20,
        )
        for tokens, each in result["checkpoints"].items()
    }


def show(console: Console, tokens: int, results: Mapping[str, Any]) -> None:
    """Print the table of readings of one length."""
    columns = ["", "read", "tok/s", "decode ms", "at the first checkpoint: tok/s", "decode ms"]
    columns += ["most MiB", "of mapped files", "on disk", "keys found"]
    table = Table(*columns, box=MARKDOWN, title=f"{tokens:,} tokens")
    for way, result in results.items():
        if "error" in result:
            table.add_row(way, result["error"])
            continue
        (_, first), *_, (end, last) = [*result["checkpoints"].items()] * 2
        found = [key["found"] for key in result["keys"]]
        table.add_row(
            way,
            f"{int(end):,}" + (" (stopped)" if result["stopped"] else ""),
            _rate(last),
            spread(last["decode_ms"]),
            _rate(first),
            spread(first["decode_ms"]),
            *(f"{size / 2**20:,.0f}" for size in (*last["most"].values(), last["disk"])),
            f"{sum(found)} of {len(found)}" if found else "-",
        )
    console.print(table)
    repeated = [result["text_read_times"] for result in results.values() if result.get("text_read_times", 0) > 1]
    if repeated:
        console.print(f"The text is repeated: it is read {max(repeated):.1f} times.", style="dim")


def _rate(checkpoint: Mapping[str, Any]) -> str:
    rate = checkpoint["tokens_per_second"]
    return "-" if rate is None else f"{rate:,.0f}"


def draw(path: Path, title: str, results: Mapping[str, Any]) -> None:
    """Draw speed, latency and memory over the tokens read, one line for each way."""
    figure, axes = panels(title, len(PANELS), height=4.5)
    figure.set_size_inches(13, 4.5)
    for way, result in results.items():
        points = at_checkpoints(result)
        for number, each in enumerate(axes):
            line = [(tokens, value) for tokens, values in points.items() if (value := values[number]) is not None]
            each.plot([n for n, _ in line], [value for _, value in line], marker="o", markersize=3, label=way)
    for each, name in zip(axes, PANELS, strict=True):
        each.set_xscale("log", base=2)
        each.xaxis.set_major_formatter("{x:,.0f}")
        each.tick_params(axis="x", labelrotation=45)
        each.set_ylim(bottom=0)
        each.set_title(name, fontsize=10)
        each.set_xlabel("tokens read")
        each.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=150)


def settings_of(folder: Path, small: bool) -> dict[str, Any]:
    """Return what the small setting changes."""
    if not small:
        return {}
    return {
        **small_setting(folder, characters=2000),
        "tokens": [3000],
        "first": 512,
        "stretch": 512,
        "decode": 4,
        "depths": [0.25, 0.75],
    }


def main(
    model: Annotated[str, typer.Option(help="Hub id or folder; the demo model if left out.")] = "",
    tokens: Annotated[list[int], typer.Option(help="How many to read.")] = [32_000],  # noqa: B006
    way: Annotated[list[str], typer.Option(help="Ways of reading.")] = list(WAYS),  # noqa: B006
    file: Annotated[list[Path], typer.Option(help="Texts; the Python language reference if left out.")] = [],  # noqa: B006
    window: Annotated[int, typer.Option(help="Local window.")] = 2048,
    dtype: Annotated[str, typer.Option(help="Weights and activations.")] = "float32",
    depth: Annotated[list[float], typer.Option(help="Where keys are hidden.")] = [0.1, 0.3, 0.5, 0.7, 0.9],  # noqa: B006
    seed: Annotated[int, typer.Option(help="Which keys.")] = 0,
    settings: SetOption = None,
    hours: Annotated[float, typer.Option(help="A reading that takes longer stops.")] = 12.0,
    output: Annotated[Path, typer.Option(help="For results, pictures, memories on disk.")] = Path("bench-long"),
    small: Annotated[bool, typer.Option("--small", help="Hardly anything, to see that it runs.")] = False,
) -> None:
    """Measure long readings."""
    given: dict[str, Any] = {
        "model": model,
        "tokens": tokens,
        "window": window,
        "files": file,
        "first": 1024,
        "stretch": 16_384,
        "decode": 16,
        "depths": sorted(depth),
        "way": way,
        **settings_of(output, small),
    }
    if not given["model"]:
        from memcore.demo.weights import demo_model_path

        given["model"] = str(demo_model_path())
    config = memory_config("", settings, window=given["window"])
    ways, lengths = given.pop("way"), given.pop("tokens")
    given["config"] = config.to_dict()
    given["options"] = OPTIONS
    del given["window"]
    given |= {"dtype": dtype, "seed": seed, "files": [str(path.resolve()) for path in given["files"]]}
    record = Record(output / "long.json", "long", given)
    console = machine_console()
    for number in lengths:
        for each in ways:
            key = f"{each} / {number}"
            if why := left_out(each, config):
                console.print(f"{each} is left out: {why}", style="dim")
            elif not finished(each, record.results.get(key)):
                folder = output / key.replace(" / ", "-").replace(":", "-")
                what = {**given, "way": each, "tokens": number, "seconds": 3600 * hours, "folder": str(folder)}
                result = measured("long_cell.py", what, show=True)
                record.add(key, result)
                if finished(each, result):
                    shutil.rmtree(folder)
        rows = {each: record.results.get(f"{each} / {number}") for each in ways}
        done = {each: result for each, result in rows.items() if result is not None}
        show(console, number, done)
        right = {each: result for each, result in done.items() if "error" not in result}
        name = Path(given["model"]).name
        draw(
            output / f"long-{number}.png",
            f"{', '.join([name, dtype, f'window {config.window_length:,}', *(settings or [])])}: {number:,} tokens",
            right,
        )
    console.print(f"{describe_machine()}", style="dim")
    if any("error" in result for result in record.results.values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
