"""Pass-keys found with memory, per backend, and with full attention on the same prompts.

    python benchmarks/passkey.py --tokens 8000 --tokens 32000

The hnswlib backend is made to search its graph at any size (``exact_below=0``), or short documents would only show its
exact scan again. Full attention reads prompts in pieces of 1,024 tokens, which is its faster way on a CPU.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from machine import console as machine_console
from machine import save
from passkey_task import Trial, answer, make_trial, reference_tokens
from rich.progress import Progress
from rich.table import Table

import memcore
from memcore.evaluation.machine import describe_machine
from memcore.reader import load_model

BACKEND_OPTIONS: dict[str, dict[str, Any]] = {"faiss": {"exact_below": 0}, "hnswlib": {"exact_below": 0}}
FULL = "full"
WAYS = ["exact", "hnswlib", FULL]


def main(
    model: Annotated[str, typer.Option(help="Hub id or folder; the demo model if left out.")] = "",
    dtype: Annotated[str, typer.Option(help="Weights and activations.")] = "bfloat16",
    tokens: Annotated[list[int], typer.Option(help="Length of the prompts.")] = [8000],  # noqa: B006
    window: Annotated[int, typer.Option(help="Local window of the memory.")] = 1024,
    way: Annotated[list[str], typer.Option(help="A backend, or full for full attention.")] = WAYS,
    depth: Annotated[list[float], typer.Option(help="Where keys stand.")] = [0.1, 0.3, 0.5, 0.7, 0.9],  # noqa: B006
    seeds: Annotated[int, typer.Option(help="Documents per depth.")] = 4,
    set_: Annotated[list[str], typer.Option("--set", help="Other fields of MemoryConfig, name=value.")] = [],  # noqa: B006
    json_file: Annotated[Path | None, typer.Option("--json", help="Write results here, after every trial.")] = None,
) -> None:
    """Count the pass-keys found at every depth and length."""
    if not model:
        from memcore.demo.weights import demo_model_path

        model = str(demo_model_path())
    plain, tokenizer = load_model(model, dtype=dtype)
    text = reference_tokens(tokenizer)
    overrides = dict(_field(each) for each in set_)
    settings = {
        "model": Path(model).name,
        "dtype": dtype,
        "window": window,
        "depths": depth,
        "seeds": seeds,
        **overrides,
    }
    results: list[dict[str, Any]] = []
    console = machine_console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for length in tokens:
            trials = [make_trial(tokenizer, text, tokens=length, depth=d, seed=s) for s in range(seeds) for d in depth]
            for each in way:
                task = progress.add_task(f"{length} tokens, {each}", total=len(trials))
                if each != FULL:
                    options = BACKEND_OPTIONS.get(each, {})
                    memcore.wrap(plain, window=window, backend=each, backend_options=options, **overrides)
                for trial in trials:
                    results.append(_run(plain, tokenizer, trial, each))
                    save(json_file, "passkey", settings, results)
                    progress.advance(task)
                if each != FULL:
                    memcore.unwrap(plain)
    console.print(_table(results, tokens, way, depth, f"{settings['model']}, window {window}, {dtype}"))
    console.print(f"{describe_machine()}", style="dim")


def _field(text: str) -> tuple[str, Any]:
    import yaml

    name, _, value = text.partition("=")
    return name, yaml.safe_load(value)


def _run(model: Any, tokenizer: Any, trial: Trial, way: str) -> dict[str, Any]:
    begun = time.perf_counter()
    # In pieces a sliding layer computes its window and not the whole square. A wrapped model cuts prompts by itself.
    text = answer(model, tokenizer, trial, prefill_chunk_size=1024 if way == FULL else None)
    return {
        "way": way,
        "tokens": trial.ids.shape[1],
        "depth": trial.depth,
        "seed": trial.seed,
        "key": trial.key,
        "answer": text,
        "found": trial.key in text,
        "seconds": round(time.perf_counter() - begun, 2),
    }


def _table(results: list[dict[str, Any]], tokens: list[int], ways: list[str], depths: list[float], title: str) -> Table:
    table = Table("tokens", "", *(f"depth {d:g}" for d in depths), "found", "tok/s", title=title)
    for length in tokens:
        for way in ways:
            mine = [r for r in results if r["tokens"] == length and r["way"] == way]
            cells = []
            for d in depths:
                here = [r["found"] for r in mine if r["depth"] == d]
                cells.append(f"{sum(here)}/{len(here)}")
            speed = sum(r["tokens"] for r in mine) / sum(r["seconds"] for r in mine)
            found = sum(r["found"] for r in mine)
            table.add_row(f"{length:,}", way, *cells, f"{found}/{len(mine)}", f"{speed:.0f}")
    return table


if __name__ == "__main__":
    torch.manual_seed(0)
    typer.run(main)
