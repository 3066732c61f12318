"""``memcore eval ppl``: perplexity over the length of context."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memcore.cli.evaluate.setting import ModelArgument, OutputOption, TrainedOption, finish, prepare
from memcore.cli.output import JsonOption, console, reading_progress
from memcore.cli.settings import ConfigOption, DeviceOption, DtypeOption, SetOption, WindowOption
from memcore.errors import EvaluationError
from memcore.files import read_text

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


def ppl(
    model: ModelArgument,
    file: Annotated[list[Path], typer.Option(help="A long text, UTF-8; may be repeated.")],
    output: OutputOption,
    context: Annotated[list[int], typer.Option(help="Length of context, in tokens; may be repeated.")],
    scored: Annotated[int, typer.Option(min=1, help="Tokens scored at the end of each context.")] = 1024,
    every: Annotated[int, typer.Option(min=1, help="Score every N-th of these only: logits cost time.")] = 1,
    way: Annotated[
        list[str] | None,
        typer.Option(
            help="How to read: chunks, window, full, streaming, random, memory, memory:BACKEND; all but the first and "
            "the last if left out."
        ),
    ] = None,
    trained: TrainedOption = None,
    window: WindowOption = None,
    config: ConfigOption = "",
    settings: SetOption = None,
    device: DeviceOption = "",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Perplexity of long texts over the length of context.

    The plain model with a sliding window, full attention, a streaming window with sinks, chunks by chance, and memory,
    all scored on the same tokens, strictly from left to right.
    """
    from memcore.evaluation import perplexity
    from memcore.evaluation.record import Record

    perplexity.spans_for(context, scored)
    setting = prepare(
        model,
        trained=trained,
        ways=way,
        config=config,
        settings=settings,
        window=window,
        device=device,
        dtype=dtype,
        known=perplexity.PERPLEXITY_WAYS,
    )
    texts = {path.name: _tokens(setting.tokenizer, path, max(context)) for path in file}
    if len(texts) < len(file):
        raise EvaluationError("two files have the same name, by which their results would be kept")
    record = Record(
        output / "ppl.json",
        "ppl",
        {
            **setting.record,
            "contexts": sorted(context),
            "scored": scored,
            **({"every": every} if every > 1 else {}),
        },
    )
    with reading_progress() as start:
        perplexity.evaluate(
            setting.model,
            texts,
            setting.ways,
            config=setting.memory,
            contexts=context,
            scored=scored,
            every=every,
            record=record,
            progress=lambda key: start(key, max(context)),
        )
    _show(record.results, setting.ways, list(texts), output, setting.title, as_json=as_json)


def _tokens(tokenizer: PreTrainedTokenizerBase, path: Path, needed: int) -> Tensor:
    """Return the first tokens of a text, ``[1, needed]``."""
    from memcore.prompt import encode

    ids = encode(tokenizer, read_text(path), special=True)
    if ids.shape[1] < needed:
        raise EvaluationError(f"{path} has {ids.shape[1]:,} tokens, fewer than the longest context, {needed:,}")
    return ids[:, :needed]


def _show(
    results: dict[str, Any], ways: Sequence[str], texts: Sequence[str], output: Path, model: str, *, as_json: bool
) -> None:
    from rich.table import Table

    from memcore.evaluation.perplexity import result_name, summary
    from memcore.evaluation.plots import plot_over_context

    values = summary(results, ways, texts)
    contexts = sorted({context for row in values.values() for context in row})
    table = Table("way", *(f"{context:,}" for context in contexts), "tok/s")
    for way, row in values.items():
        runs = [results[result_name(text, way)] for text in texts]
        speed = sum(run["read"] for run in runs) / sum(run["seconds"] for run in runs)
        table.add_row(way, *(f"{row[context]:.2f}" for context in contexts), f"{speed:,.0f}")
    if not as_json:
        console.print(table)
    picture = output / "ppl.png"
    plot_over_context(picture, values, title=f"Perplexity of {model}", value="perplexity")
    finish(values, [output / "ppl.json", picture], as_json=as_json)
