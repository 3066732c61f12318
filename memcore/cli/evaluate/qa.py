"""``memcore eval qa``: questions about a long text."""

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
from memcore.files import not_empty, read_text

if TYPE_CHECKING:
    from memcore.evaluation.questions import Question


def qa(
    model: ModelArgument,
    output: OutputOption,
    file: Annotated[Path, typer.Option(help="The text, UTF-8.")],
    questions: Annotated[
        Path, typer.Option(help="Questions, one JSON object a line: question, answer (or a list), perhaps options.")
    ],
    prompt: Annotated[
        str, typer.Option(help="How a model without a chat template is asked; \\n is a new line.")
    ] = "Question: {question}\\nAnswer:",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 32,
    way: WayOption = None,
    trained: TrainedOption = None,
    window: WindowOption = None,
    config: ConfigOption = "",
    settings: SetOption = None,
    device: DeviceOption = "",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Questions about a long text: how many are answered.

    The text is read once in each way. A question with options is answered by the likeliest one. Of any other the
    answer must be in what the model writes, whatever the case, articles and punctuation.
    """
    from memcore.evaluation.qa import evaluate
    from memcore.evaluation.questions import read_questions
    from memcore.evaluation.record import Record

    asked, text = read_questions(questions), not_empty(read_text(file), str(file))
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
        output / "qa.json",
        "qa",
        {
            **setting.record,
            "text": digest(text),
            "questions": digest(repr(asked)),
            "prompt": prompt,
            "max_new_tokens": max_new_tokens,
        },
    )
    with reading_progress() as start:
        evaluate(
            setting.model,
            setting.tokenizer,
            text,
            asked,
            setting.ways,
            config=setting.memory,
            record=record,
            prompt=prompt.replace("\\n", "\n"),
            max_new_tokens=max_new_tokens,
            progress=start,
        )
    _show(record.results, setting.ways, asked, output, setting.title, as_json=as_json)


def _show(
    results: dict[str, Any],
    ways: Sequence[str],
    questions: Sequence[Question],
    output: Path,
    model: str,
    *,
    as_json: bool,
) -> None:
    from rich.table import Table

    from memcore.evaluation.plots import plot_bars
    from memcore.evaluation.qa import result_name, summary

    shown = Table("question", *ways)
    for each in questions:
        marks = ["right" if results[result_name(each, way)]["right"] else "wrong" for way in ways]
        shown.add_row(each.question, *marks)
    shares = summary(results, ways, questions)
    shown.add_section()
    shown.add_row("answered", *(f"{share:.0%}" for share in shares.values()))
    if not as_json:
        console.print(shown)
    picture = output / "qa.png"
    table = {f"{len(questions)} questions": {way: (share, float("nan")) for way, share in shares.items()}}
    plot_bars(picture, table, title=f"Questions answered by {model}", value="answered")
    finish(shares, [output / "qa.json", picture], as_json=as_json)
