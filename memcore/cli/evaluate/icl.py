"""``memcore eval icl``: in-context learning with demonstrations in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from memcore.errors import EvaluationError

if TYPE_CHECKING:
    from memcore.evaluation.labelled_texts import Task

_PROMPT = "Input: {text}\\nType:"


def icl(
    model: ModelArgument,
    output: OutputOption,
    data: Annotated[
        list[Path] | None, typer.Option(help="A .csv or .tsv file with labelled texts; may be repeated.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="A file with the test items of --data, else drawn from it and kept apart.")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column of the labels.")] = "label",
    prompt: Annotated[str, typer.Option(help="What stands before the label; \\n is a new line.")] = _PROMPT,
    word: Annotated[
        list[str] | None, typer.Option(metavar="LABEL=WORD", help="What a label is called; may be repeated.")
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="A public set in --data-folder: sst2, sst5, subj; may be repeated.")
    ] = None,
    data_folder: Annotated[Path | None, typer.Option(help="Folder with the public sets.")] = None,
    demonstrations: Annotated[int, typer.Option(min=1, help="Demonstrations read before.")] = 128,
    shots: Annotated[int, typer.Option(min=1, help="Demonstrations right before each test item.")] = 4,
    items: Annotated[int, typer.Option(min=1, help="Test items.")] = 200,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of the demonstrations.")] = 3,
    way: WayOption = None,
    trained: TrainedOption = None,
    window: WindowOption = None,
    config: ConfigOption = "",
    settings: SetOption = None,
    device: DeviceOption = "",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Labels of texts, from demonstrations in memory and a few in the window.

    The way "window" sees the few shots only. All others read the demonstrations before: full attention sees them all,
    a streaming window the last of them, memory those that it retrieves. The label is the one with the likeliest word.
    """
    from memcore.evaluation.icl import Protocol, evaluate, summary
    from memcore.evaluation.labelled_texts import known_task, make_task, read_examples
    from memcore.evaluation.record import Record

    if test is not None and len(data or ()) != 1:
        raise EvaluationError("--test belongs to one --data")
    if dataset and data_folder is None:
        raise EvaluationError("--dataset needs the folder that it lies in, --data-folder")
    tasks: list[Task] = [known_task(name, data_folder) for name in dataset or () if data_folder is not None]
    for path in data or ():
        files = [path] if test is None else [path, test]
        read = [read_examples(file, text=text_column, label=label_column) for file in files]
        tests = () if test is None else read[1]
        tasks.append(make_task(path.stem, read[0], tests, words=_words(word), prompt=prompt.replace("\\n", "\n")))
    if not tasks:
        raise EvaluationError("give labelled texts: --data FILE, or --dataset NAME --data-folder FOLDER")
    if len({task.name for task in tasks}) < len(tasks):
        raise EvaluationError(
            "two sets have the same name, by which their results would be kept: a file has that before .csv or .tsv"
        )
    protocol = Protocol(demonstrations=demonstrations, shots=shots, items=items, seeds=seeds)
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
    table: dict[str, dict[str, tuple[float, float]]] = {}
    with reading_progress("items") as start:
        for task in tasks:
            record = Record(
                output / f"icl-{task.name}.json",
                "icl",
                {
                    **setting.record,
                    "data": digest(repr((task.pool, task.tests))),
                    "prompt": task.prompt,
                    "words": dict(task.words),
                    "demonstrations": demonstrations,
                    "shots": shots,
                    "items": items,
                },
            )
            evaluate(
                setting.model,
                setting.tokenizer,
                task,
                setting.ways,
                config=setting.memory,
                protocol=protocol,
                record=record,
                progress=start,
            )
            table[task.name] = summary(record.results, setting.ways, seeds)
    title = f"{shots} shots, {demonstrations} demonstrations before: {setting.title}"
    _show(table, setting.ways, output, title, as_json=as_json)


def _words(given: Sequence[str] | None) -> dict[str, str]:
    words = {}
    for each in given or ():
        label, equals, called = each.partition("=")
        if not (label and equals and called.strip()):
            raise EvaluationError(f"--word takes LABEL=WORD, got {each!r}")
        words[label] = called.strip()
    return words


def _show(
    table: dict[str, dict[str, tuple[float, float]]], ways: Sequence[str], output: Path, title: str, *, as_json: bool
) -> None:
    from rich.table import Table

    from memcore.evaluation.plots import plot_bars

    shown = Table("accuracy, %", *ways)
    for name, row in table.items():
        cells = [
            f"{100 * mean:.1f}" + ("" if math.isnan(error) else f" ± {100 * error:.1f}") for mean, error in row.values()
        ]
        shown.add_row(name, *cells)
    if not as_json:
        console.print(shown)
    picture = output / "icl.png"
    plot_bars(picture, table, title=title, value="accuracy")
    values = {
        name: {
            way: {"accuracy": mean, "error": None if math.isnan(error) else error} for way, (mean, error) in row.items()
        }
        for name, row in table.items()
    }
    finish(values, [*(output / f"icl-{name}.json" for name in table), picture], as_json=as_json)
