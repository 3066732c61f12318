"""``memcore eval passkey``: hidden keys found, over depth and length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memcore.cli.evaluate.setting import (
    ModelArgument,
    OutputOption,
    TrainedOption,
    WayOption,
    digest,
    finish,
    prepare,
)
from memcore.cli.output import JsonOption, console, reading_progress
from memcore.cli.settings import ConfigOption, DeviceOption, DtypeOption, SetOption, WindowOption
from memcore.files import read_text

if TYPE_CHECKING:
    from memcore.evaluation.passkey import Grid

_DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)


def passkey(
    model: ModelArgument,
    output: OutputOption,
    tokens: Annotated[list[int], typer.Option(min=1, help="Length of the prompts; may be repeated.")],
    depth: Annotated[
        list[float] | None,
        typer.Option(min=0, max=1, help="Where the key stands; may be repeated. 0.1, 0.3, 0.5, 0.7, 0.9 if left out."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Prompts for each length and depth.")] = 4,
    needles: Annotated[
        list[str] | None,
        typer.Option(
            help="What is hidden: single, several, distractors, update, each; may be repeated. single if left out."
        ),
    ] = None,
    others: Annotated[
        int, typer.Option(min=1, help="Wrong keys beside the right one, for several and distractors.")
    ] = 3,
    file: Annotated[
        list[Path] | None,
        typer.Option(help="Text to hide keys in, UTF-8; several are joined. Else Python's language reference."),
    ] = None,
    way: WayOption = None,
    trained: TrainedOption = None,
    window: WindowOption = None,
    config: ConfigOption = "",
    settings: SetOption = None,
    device: DeviceOption = "",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Keys hidden in a long text and asked for at its end: how many are found, by depth and length.

    Every way of reading gets the same prompts, each with an empty memory. A prompt is a stretch of the text, chosen by
    its seed; no part of the text is used twice in one, so it must be longer than the longest prompt.
    """
    from memcore.demo.text import language_reference
    from memcore.evaluation.passkey import Grid, evaluate, summary
    from memcore.evaluation.plots import plot_heat_maps
    from memcore.evaluation.record import Record
    from memcore.prompt import encode

    grid = Grid(
        lengths=tuple(sorted(set(tokens))),
        depths=tuple(sorted(set(depth or _DEPTHS))),
        seeds=seeds,
        kinds=tuple(needles or ("single",)),
        others=others,
    )
    text = "\n\n".join(map(read_text, file)) if file else language_reference()
    setting = prepare(
        model,
        trained=trained,
        ways=way,
        config=config,
        settings=settings,
        window=window,
        device=device,
        dtype=dtype,
    )
    record = Record(
        output / "passkey.json",
        "passkey",
        {
            **setting.record,
            "text": digest(text),
        },
    )
    with reading_progress() as start:
        evaluate(
            setting.model,
            setting.tokenizer,
            encode(setting.tokenizer, text, special=False)[0].tolist(),
            setting.ways,
            config=setting.memory,
            grid=grid,
            record=record,
            progress=start,
        )
    pictures = []
    for kind in grid.kinds:
        if not as_json:
            _show(record.results, setting.ways, grid, kind)
        pictures.append(output / f"passkey-{kind}.png")
        title = f"Pass-keys found by {setting.title}: {kind}"
        plot_heat_maps(pictures[-1], summary(record.results, setting.ways, grid, kind), title=title, value="found")
    values = {kind: summary(record.results, setting.ways, grid, kind) for kind in grid.kinds}
    finish(values, [output / "passkey.json", *pictures], as_json=as_json)


def _show(results: dict[str, Any], ways: Sequence[str], grid: Grid, kind: str) -> None:
    """Print the table of one kind of needles."""
    from rich.table import Table

    table = Table(
        "tokens",
        "",
        *(f"{depth:g}" for depth in grid.depths),
        "all depths",
        "wrong key",
        "tok/s",
        title=f"{kind}: keys found, by depth",
    )
    for length in grid.lengths:
        for way in ways:
            rows = {
                depth: [results[grid.key(kind, length, depth, seed, way)] for seed in range(grid.seeds)]
                for depth in grid.depths
            }
            every = [result for row in rows.values() for result in row]
            speed = sum(result["read"] for result in every) / sum(result["seconds"] for result in every)
            table.add_row(
                f"{length:,}",
                way,
                *(f"{sum(result['found'] for result in row)}/{len(row)}" for row in rows.values()),
                f"{sum(result['found'] for result in every)}/{len(every)}",
                str(sum(result["other"] and not result["found"] for result in every)),
                f"{speed:,.0f}",
            )
    console.print(table)
