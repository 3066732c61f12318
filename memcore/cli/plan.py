"""``memcore plan``: what a model with a memory takes, where it fits, and the configuration to use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memcore.cli import completion
from memcore.cli.failures import FAILED
from memcore.cli.output import JsonOption, console, print_json
from memcore.cli.settings import (
    BackendOption,
    ConfigOption,
    DtypeOption,
    PathOption,
    SetOption,
    TopKOption,
    memory_config,
)
from memcore.errors import ConfigError
from memcore.planning.architectures import ARCHITECTURES

if TYPE_CHECKING:
    from memcore.config import MemoryConfig
    from memcore.planning.model_shape import ModelShape
    from memcore.planning.plan import Budgets, Plan


def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL]",
            help="Folder, config.json, hub id or known name; none to list known names.",
            autocompletion=completion.words(dict.fromkeys(ARCHITECTURES, "")),
        ),
    ] = "",
    tokens: Annotated[
        list[str], typer.Option(help="Length of the text: 128k is 128,000, 1M 1,000,000, 4Ki 4,096; may be repeated.")
    ] = ["1M"],  # noqa: B006
    window: Annotated[str, typer.Option(help="Tokens the model attends to directly, e.g. 4k.")] = "",
    gpu: Annotated[
        str, typer.Option(help="Memory of the GPU, 24GiB or 24GB; none for the CPU. By default this machine's.")
    ] = "",
    ram: Annotated[str, typer.Option(help="Memory of the machine, by default this one's.")] = "",
    disk: Annotated[str, typer.Option(help="Room on disk, by default what is free where the memory goes.")] = "",
    dtype: DtypeOption = "auto",
    weights: Annotated[str, typer.Option(help="Size of the weights where they are quantised, e.g. 5GiB.")] = "",
    compression: Annotated[
        str,
        typer.Option(
            help="int8 keeps keys and values in a byte a number.",
            autocompletion=completion.words({"none": "bit for bit", "int8": "a byte a number"}),
        ),
    ] = "",
    backend: BackendOption = None,
    path: PathOption = "",
    batch: Annotated[int, typer.Option(min=1, help="Sequences at a time, each with a memory of its own.")] = 1,
    top_k: TopKOption = None,
    config: ConfigOption = "",
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Work out what a model with a memory takes and what fits where, and print the configuration to use.

    Everything follows from the model's config.json; no weights are read and nothing is measured. Exits with 1 if
    something does not fit.

    Without --backend the memory is in RAM if it fits there, else on disk.

    Without MODEL the known names are listed, with what a memory of one length takes for each.
    """
    from memcore.planning.model_shape import find_config, model_shape
    from memcore.planning.plan import make_plan
    from memcore.planning.sizes import parse_bytes, parse_tokens

    lengths = [parse_tokens(each) for each in tokens]
    given = [*(settings or ()), *([f"backend_options.compression={compression}"] if compression else [])]
    memory = memory_config(
        config, given, path=path, window=parse_tokens(window) if window else None, top_k=top_k, backend=backend
    )
    if not model:
        of_one: dict[str, object] = {"--gpu": gpu, "--ram": ram, "--disk": disk, "--weights": weights}
        of_one |= {"--batch": batch > 1, "more than one --tokens": len(tokens) > 1}
        needless = ", ".join(name for name, value in of_one.items() if value)
        if needless:
            raise ConfigError(f"without MODEL the known ones are listed, which has no use for {needless}: name a model")
        _known(memory, lengths[0], dtype, as_json)
        return
    budgets = _budgets(gpu, ram, disk, Path(str(memory.backend_options.get("path", "."))))
    found, source = find_config(model)
    shape = model_shape(found, memory, dtype=dtype)
    if weights:
        shape = shape.with_weights(parse_bytes(weights))
    free = backend is None and memory.backend == "exact" and set(memory.backend_options) <= {"compression"}
    plans = [make_plan(shape, tokens=each, budgets=budgets, batch=batch, choose_backend=free) for each in lengths]
    if as_json:
        print_json({"model": _model(model, source, shape), "plans": [_plan(each) for each in plans]})
    else:
        _print(model, source, shape, plans, budgets)
    if not all(each.fits for each in plans):
        raise typer.Exit(FAILED)


def _budgets(gpu: str, ram: str, disk: str, path: Path) -> Budgets:
    """Return what was given, and for the rest what there is; on disk, where the path is or will be."""
    import shutil

    import psutil
    import torch

    from memcore.planning.plan import Budgets
    from memcore.planning.sizes import parse_bytes

    there = next(each for each in (path, *path.parents) if each.exists())
    on_gpu: int | None = None
    if gpu and gpu != "none":
        on_gpu = parse_bytes(gpu)
    elif not gpu and torch.cuda.is_available():
        on_gpu = torch.cuda.get_device_properties(0).total_memory
    return Budgets(
        gpu=on_gpu,
        ram=parse_bytes(ram) if ram else psutil.virtual_memory().total,
        disk=parse_bytes(disk) if disk else shutil.disk_usage(there).free,
    )


def _known(memory: MemoryConfig, tokens: int, dtype: str, as_json: bool) -> None:
    """Print the models whose shapes are known, and what memory takes for each."""
    import attrs
    from rich.table import Table

    from memcore.planning.costs import costs_of
    from memcore.planning.model_shape import find_config, model_shape
    from memcore.planning.sizes import show_bytes, show_tokens

    rows = []
    for name in ARCHITECTURES:
        shape = model_shape(find_config(name)[0], memory, dtype=dtype)
        small = attrs.evolve(shape.config, backend_options={**shape.config.backend_options, "compression": "int8"})
        row: dict[str, Any] = {**_model(name, "", shape), "bytes": None}
        if shape.longest_text is None:
            costs, in_int8 = (costs_of(shape, each, tokens=tokens) for each in (shape.config, small))
            row["bytes"] = {
                "per_token": round(costs.per_token),
                "memory": costs.bank.total + costs.bookkeeping,
                "memory_in_int8": in_int8.bank.total + in_int8.bookkeeping,
                "full_attention": costs.full_cache,
            }
        rows.append(row)
    if as_json:
        print_json({"tokens": tokens, "models": rows})
        return
    amount = show_tokens(tokens)
    table = Table(
        "model",
        "weights",
        "layers",
        "a token",
        f"{amount} tokens",
        "in int8",
        "full cache",
        box=None,
        pad_edge=False,
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        sizes = ["–"] * 4 if row["bytes"] is None else [show_bytes(each) for each in row["bytes"].values()]
        layers = f"{row['remembering_layers']} of {row['layers']}"
        table.add_row(row["name"], show_bytes(row["weight_bytes"]), layers, *sizes)
    console.print(table)


def _model(name: str, source: str, shape: ModelShape) -> dict[str, Any]:
    return {
        "name": name,
        **({"source": source} if source else {}),
        "model_type": shape.model_type,
        "parameters": shape.parameters,
        "weight_bytes": shape.weight_bytes,
        "dtype": str(shape.dtype).removeprefix("torch."),
        "layers": len(shape.layers),
        "remembering_layers": len(shape.remembering),
        "notes": list(shape.notes),
    }


def _plan(found: Plan) -> dict[str, Any]:
    import attrs

    return {
        "tokens": found.costs.tokens,
        "fits": found.fits,
        "reason": found.reason,
        "advice": list(found.advice),
        "config": found.config.to_dict(),
        "bytes_per_token": found.costs.per_token,
        "costs": attrs.asdict(found.costs),
        "places": [
            {
                "name": each.name,
                "fits": each.fits,
                "needed": each.needed,
                "budget": each.budget,
                "parts": {_key(label): size for label, size in each.parts.items()},
            }
            for each in found.places
        ],
    }


def _key(label: str) -> str:
    """Return the key in JSON of what a table calls by a label."""
    return label.partition(",")[0].replace(" ", "_").lower()


def _print(name: str, source: str, shape: ModelShape, plans: list[Plan], budgets: Budgets) -> None:
    from rich.table import Table

    from memcore.planning.sizes import show_tokens
    from memcore.planning.toml import to_toml

    config = shape.config
    dtype = str(shape.dtype).removeprefix("torch.")
    lines = [
        f"{name}: {shape.parameters:,} parameters, {dtype}; {len(shape.remembering)} of {len(shape.layers)} layers "
        f"remember. From {source}.",
        f"A window of {config.window_length:,} tokens; {config.chunks} chunks of {config.chunk_size} tokens come back.",
    ]
    for line in (*lines, *shape.notes):
        console.print(line, soft_wrap=True)
    console.print()
    table = Table("", *(f"{show_tokens(each.costs.tokens)} tokens" for each in plans), box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for title, rows in _sections(plans, budgets):
        table.add_row(title, style="bold")
        for label, cells in rows:
            table.add_row(f"  {label}", *cells)
    console.print(table)
    for each in plans:
        console.print()
        amount = show_tokens(each.costs.tokens)
        if each.fits:
            console.print(f"# {amount} tokens: {each.reason}", soft_wrap=True)
            for line in (*_needs(each.config.backend), *each.advice):
                console.print(f"# {line}", soft_wrap=True)
            console.print(to_toml(each.config), end="", soft_wrap=True)
        else:
            where = ", ".join(place.name for place in each.places if not place.fits)
            console.print(f"{amount} tokens do not fit ({where}).", style="bold red", soft_wrap=True)
            for line in each.advice:
                console.print(f"- {line}", soft_wrap=True)


def _needs(backend: str) -> list[str]:
    """Return what has to be installed for a backend, if anything has."""
    from memcore.plugins import registry

    install = registry().components("backends")[backend].component.install
    return [f"needs: pip install {install!r}"] if install else []


_Rows = list[tuple[str, list[str]]]


def _sections(plans: list[Plan], budgets: Budgets) -> list[tuple[str, _Rows]]:
    from memcore.planning.sizes import show_bytes, show_operations

    def row(label: str, of: Any, show: Any = show_bytes) -> tuple[str, list[str]]:
        return label, [show(of(each)) for each in plans]

    def some(rows: _Rows) -> _Rows:
        return [each for each in rows if any(cell != "0 B" for cell in each[1])]

    names = list(dict.fromkeys(place.name for each in plans for place in each.places))
    sections = [(f"{name}, all sequences", _parts(plans, name)) for name in names]
    sections.append(
        (
            "memory, wherever it is",
            [
                row("keys, values, tokens", lambda each: each.costs.bank.payload),
                row("search vectors", lambda each: each.costs.bank.vectors),
                row("index and bookkeeping", lambda each: each.costs.bank.index + each.costs.bookkeeping),
                row("a token in it", lambda each: each.costs.per_token),
                row("full attention's cache instead", lambda each: each.costs.full_cache),
            ],
        )
    )
    moves = [
        row("queries to the memory", lambda each: each.costs.step.queries),
        row("read there", lambda each: each.costs.step.read),
        row("to the model", lambda each: each.costs.step.to_model),
        row("  a generated token", lambda each: each.costs.step.to_model / each.costs.every),
        row("  a token read", lambda each: each.costs.step.to_model / each.costs.segment),
    ]
    sections.append(("moved for one choice of chunks", some(moves)))
    operations = [
        row("weights", lambda each: each.costs.operations.weights, show_operations),
        row("full attention", lambda each: each.costs.operations.full, show_operations),
        row("attention with memory", lambda each: each.costs.operations.memory, show_operations),
        row("search, of every vector", lambda each: each.costs.operations.search, show_operations),
        row("comparing candidates", lambda each: each.costs.operations.rerank, show_operations),
    ]
    sections.append(("operations of a generated token", operations))
    sections.append(("fits", _fits(plans, names, budgets)))
    return sections


def _parts(plans: list[Plan], name: str) -> _Rows:
    """Return what lies in one place, and how much that is."""
    from memcore.planning.sizes import show_bytes

    places = [next((place for place in each.places if place.name == name), None) for each in plans]
    labels = list(dict.fromkeys(label for place in places if place for label in place.parts))
    rows = [(label, [show_bytes(place.parts.get(label, 0)) if place else "–" for place in places]) for label in labels]
    if len(rows) > 1:
        rows.append(("together", [show_bytes(place.needed) if place else "–" for place in places]))
    return rows


def _fits(plans: list[Plan], names: list[str], budgets: Budgets) -> _Rows:
    from memcore.planning.sizes import show_bytes

    room = {place.name: place.budget for each in plans for place in each.places}
    rows = []
    for name in names:
        cells = []
        for each in plans:
            place = next((place for place in each.places if place.name == name), None)
            cells.append("not used" if place is None else "yes" if place.fits else "no")
        rows.append((f"{name} of {show_bytes(room[name])}", cells))
    where, budget = ("GPU", budgets.gpu) if budgets.gpu is not None else ("RAM", budgets.ram)
    rows.append((f"full attention, {where}", ["yes" if each.full_attention_fits(budget) else "no" for each in plans]))
    rows.append(("backend", [each.config.backend for each in plans]))
    return rows
