"""What a model with a memory costs on a GPU: the numbers that docs/gpu.md lacks, to be filled in by who has one.

    make bench-gpu ARGS="--model Qwen/Qwen2.5-7B --tokens 32000"

Prefill, time of a generated token and peak memory of the plain model (attention to everything, read in pieces; with
transformers' offloaded cache, too), of the wrapped model while everything fits the window, and of a memory that is kept
in RAM, on the GPU, in a faiss index on the GPU, or on disk. The peak is that of torch's allocator; where there is a
faiss index, with the most that others than torch held of the GPU (``outside_torch.py``). A way that runs out of memory
says so, and the next goes on. ``--small`` runs the same code with a tiny model, on the CPU if need be.

What is done is kept in ``--output``, and not done again.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import torch
import typer
from machine import console as machine_console
from machine import spread
from offloaded import NEEDS_GPU
from outside_torch import OutsideTorch
from rich.box import MARKDOWN
from rich.table import Table
from speed import decode, prefill, prefill_in_pieces, timed
from texts import repeated
from tiny import small_setting
from torch import Tensor

import memcore
from memcore.demo.peak import PeakMemory
from memcore.evaluation.machine import describe_machine
from memcore.evaluation.plots import canvas
from memcore.evaluation.record import Record
from memcore.model_source import load_model

PLAIN, PLAIN_OFFLOADED = "plain", "plain, offloaded cache"
PLAIN_INSIDE, WRAPPED_INSIDE = "plain, inside the window", "wrapped, inside the window"

READERS: Final[dict[str, Callable[[Any, Tensor], Any]]] = {
    PLAIN: prefill_in_pieces,
    PLAIN_OFFLOADED: functools.partial(prefill_in_pieces, offloading=True),
}
"""What reads a text in a way, if not the model in one call."""

NO_GPU: Final = (
    "There is no GPU here (torch.cuda.is_available() is false), and this benchmark is about one: nothing was measured. "
    "`--small` runs it on the CPU, to see that it runs."
)


def memories(device: torch.device, folder: str) -> dict[str, dict[str, Any]]:
    """Return the backends to try, with their options.

    faiss searches its index at any size: a text of usual length has too few vectors for one by default.
    """
    there = str(device)
    faiss = {"device": there, "exact_below": 0}
    return {
        "memory in RAM": {"backend": "exact"},
        f"memory on {there}": {"backend": "exact", "backend_options": {"device": there}},
        f"memory in RAM, faiss on {there}": {"backend": "faiss", "backend_options": faiss},
        "memory on disk, lmdb": {"backend": "lmdb", "backend_options": {"path": folder}},
    }


def left_out(way: str, device: torch.device) -> str:
    """Return why a way cannot be measured here; empty if it can."""
    if way == PLAIN_OFFLOADED and device.type != "cuda":
        return NEEDS_GPU
    for module in ("faiss", "lmdb"):
        if module in way and importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
    if "faiss" in way and device.type == "cuda":
        import faiss

        if not hasattr(faiss, "get_num_gpus") or not faiss.get_num_gpus():
            return "faiss sees no GPU: install faiss-gpu in place of faiss-cpu"
    return ""


def out_of_memory(error: Exception) -> bool:
    """Say whether that is what is wrong: torch has an error of its own for it, and faiss has words only."""
    said = str(error).lower()
    return "out of memory" in said or "alloc fail" in said


@torch.no_grad()
def measure(
    model: Any, ids: Tensor, way: str, memory: Mapping[str, Any] | None, *, repeats: int, steps: int
) -> dict[str, Any]:
    """Read and generate in one way.

    Args:
        model: not wrapped, and given back so.
        ids: ``[1, T]`` token ids, on the model's device.
        way: of reading.
        memory: configuration of the memory; None for the plain model.
        repeats: readings; one more comes first, to warm up.
        steps: tokens generated after each.

    Returns:
        Seconds of each ``prefill``, milliseconds of each generated token, ``peak`` bytes above the model; or ``error``.
    """
    result: dict[str, Any] = {"prefill": [], "decode_ms": []}
    level = PeakMemory.in_use(model.device)
    # Asking the driver disturbs, so it is done only where there is something to hear.
    beside = OutsideTorch(model.device) if "faiss" in way else contextlib.nullcontext()
    try:
        with PeakMemory(model.device, level) as most, beside as others:
            if memory is not None:
                memcore.wrap(model, **memory)
            for repeat in range(repeats + 1):
                kept: list[Any] = []
                read = READERS.get(way, prefill)
                took = timed(functools.partial(_keep, kept, read, model, ids))
                wrote = decode(model, kept.pop(), ids[:, :1], steps + 4)[4:]
                if repeat:
                    result["prefill"].append(took)
                    result["decode_ms"] += [1000 * each for each in wrote]
        result["peak"] = most.mib * 2**20 + (0 if others is None else others.peak)
    except (RuntimeError, memcore.BackendError) as error:
        if not out_of_memory(error):
            raise
        result = {"error": f"out of memory: {str(error).splitlines()[0]}"}
    finally:
        if hasattr(model, "memory"):
            memcore.unwrap(model)
        gc.collect()
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
    return result


def _keep(kept: list[Any], read: Callable[[Any, Tensor], Any], model: Any, ids: Tensor) -> None:
    kept.append(read(model, ids))


def show(results: Mapping[str, Any], title: str) -> Table:
    """Return the table."""
    table = Table("", "tokens", "prefill s", "tok/s", "decode ms/token", "peak MiB above the model", title=title)
    table.box = MARKDOWN
    for way, result in results.items():
        if "error" in result:
            table.add_row(way, f"{result['tokens']:,}", result["error"])
            continue
        rates = [result["tokens"] / seconds for seconds in result["prefill"]]
        cells = (spread(result["prefill"]), spread(rates), spread(result["decode_ms"]))
        table.add_row(way, f"{result['tokens']:,}", *cells, f"{result['peak'] / 2**20:,.0f}")
    return table


def draw(path: Path, title: str, results: Mapping[str, Any]) -> None:
    """Draw the time of a generated token against peak memory."""
    figure, axes = canvas(title)
    for way, result in results.items():
        if "error" not in result:
            milliseconds = sorted(result["decode_ms"])
            axes.plot(
                [result["peak"] / 2**20], [milliseconds[len(milliseconds) // 2]], marker="o", linestyle="", label=way
            )
    axes.set_xlabel("peak MiB above the model")
    axes.set_ylabel("ms per generated token")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def settings_of(folder: Path, small: bool) -> dict[str, Any]:
    """Return what the small setting changes."""
    if not small:
        return {}
    return {**small_setting(folder, characters=2000), "tokens": 500, "repeats": 1, "steps": 4}


def main(
    model: Annotated[str, typer.Option(help="Hub id or folder; the demo model if left out.")] = "",
    tokens: Annotated[int, typer.Option(help="Length of a long prompt.")] = 32_000,
    file: Annotated[list[Path], typer.Option(help="Texts; the Python language reference if left out.")] = [],  # noqa: B006
    window: Annotated[int, typer.Option(help="Local window.")] = 2048,
    dtype: Annotated[str, typer.Option(help="Weights and activations.")] = "bfloat16",
    repeats: Annotated[int, typer.Option(help="Readings in each way.")] = 3,
    output: Annotated[Path, typer.Option(help="Folder for results and picture.")] = Path("bench-gpu"),
    small: Annotated[
        bool, typer.Option("--small", help="Hardly anything, on the CPU too, to see that it runs.")
    ] = False,
) -> None:
    """Measure on a GPU."""
    console = machine_console()
    if not torch.cuda.is_available() and not small:
        console.print(NO_GPU)
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    given: dict[str, Any] = {"model": model, "tokens": tokens, "files": file, "window": window, "repeats": repeats}
    given |= {"steps": 32, "dtype": dtype, "device": str(device), **settings_of(output, small)}
    if not given["model"]:
        from memcore.demo.weights import demo_model_path

        given["model"] = str(demo_model_path())
    given["files"] = [str(path.resolve()) for path in given["files"]]
    record = Record(
        output / "gpu.json",
        "gpu",
        {
            **given,
            "config": memcore.MemoryConfig(window=given["window"]).to_dict(),
            "memories": memories(device, ""),
        },
    )
    loaded, tokenizer = load_model(given["model"], device=str(device), dtype=dtype)
    text, times = repeated(tokenizer, [Path(path) for path in given["files"]], given["tokens"])
    ids = torch.tensor([text], device=device)
    with tempfile.TemporaryDirectory() as folder:
        inside = ids[:, : given["window"] - given["steps"] - 8]
        ways: dict[str, tuple[Tensor, dict[str, Any] | None]] = {
            PLAIN_INSIDE: (inside, None),
            WRAPPED_INSIDE: (inside, {}),
            PLAIN: (ids, None),
            PLAIN_OFFLOADED: (ids, None),
            **{way: (ids, memory) for way, memory in memories(device, folder).items()},
        }
        for way, (read, memory) in ways.items():
            if why := left_out(way, device):
                console.print(f"{way} is left out: {why}", style="dim")
            elif "error" in record.results.get(way, {"error": ""}):
                own = None if memory is None else {"window": given["window"], **memory}
                result = measure(loaded, read, way, own, repeats=given["repeats"], steps=given["steps"])
                record.add(way, {"tokens": read.shape[1], **result})
    title = f"{Path(given['model']).name}, {dtype}, window {given['window']:,}, {device}"
    console.print(show(record.results, title))
    draw(output / "gpu.png", title, record.results)
    if times > 1:
        console.print(f"The text is repeated: it is read {times:.1f} times.", style="dim")
    console.print(f"{describe_machine()}", style="dim")


if __name__ == "__main__":
    typer.run(main)
