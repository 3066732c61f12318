"""``memcore eval``: what memory is worth on a user's model and texts, beside what one would use without it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from memcore.cli.output import console, errors, quiet_transformers, reading_progress
from memcore.cli.settings import ConfigOption, DeviceOption, DtypeOption, SetOption, WindowOption, memory_config
from memcore.errors import EvaluationError, UnsupportedInputError

app = typer.Typer(no_args_is_help=True, help="Measure what memory is worth: results as JSON, a table and a picture.")

_WAYS: Final = ("window", "full", "streaming", "random", "memory")


@app.callback()
def _group() -> None:
    pass


@app.command()
def ppl(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id or folder of a decoder model.")],
    file: Annotated[list[Path], typer.Option(help="A long text, UTF-8; may be repeated.")],
    output: Annotated[Path, typer.Option(help="Folder for the results; what is there already is not done again.")],
    context: Annotated[list[int], typer.Option(help="Length of context, in tokens; may be repeated.")],
    scored: Annotated[int, typer.Option(min=1, help="Tokens scored at the end of each context.")] = 1024,
    way: Annotated[
        list[str] | None,
        typer.Option(help="How to read: chunks, window, full, streaming, random, memory, memory:BACKEND."),
    ] = None,
    window: WindowOption = None,
    config: ConfigOption = "",
    settings: SetOption = None,
    device: DeviceOption = "",
    dtype: DtypeOption = "auto",
) -> None:
    """Perplexity of long texts over the length of context.

    The plain model with a sliding window, full attention, a streaming window with sinks, chunks by chance, and memory,
    all scored on the same tokens, strictly from left to right.
    """
    memory, ways = memory_config(config, settings, window=window), tuple(way or _WAYS)
    from memcore.evaluation import perplexity
    from memcore.evaluation.record import Record

    perplexity.spans_for(context, scored)
    for each in ways:
        perplexity.config_for(each, memory)
    with errors.status("Loading the model ..."):
        from memcore.reader import load_model

        quiet_transformers()
        loaded, tokenizer = load_model(model, device=device, dtype=dtype)
    texts = {path.name: _tokens(tokenizer, path, max(context)) for path in file}
    if len(texts) < len(file):
        raise EvaluationError("two files have the same name, by which their results would be kept")
    record = Record(
        output / "ppl.json",
        "ppl",
        {
            "model": model,
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "contexts": sorted(context),
            "scored": scored,
            "config": memory.to_dict(),
        },
    )
    with reading_progress() as start:
        perplexity.evaluate(
            loaded,
            texts,
            ways,
            config=memory,
            contexts=context,
            scored=scored,
            record=record,
            progress=lambda key: start(key, max(context)),
        )
    _show(record.results, ways, output, model)


def _tokens(tokenizer: Any, path: Path, needed: int) -> Any:
    """Return the first tokens of a text, ``[1, needed]``."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnsupportedInputError(f"cannot read {str(path)!r} as UTF-8 text: {error}") from error
    from memcore.prompt import encode

    ids = encode(tokenizer, text, special=True)
    if ids.shape[1] < needed:
        raise EvaluationError(f"{path} has {ids.shape[1]:,} tokens, fewer than the longest context, {needed:,}")
    return ids[:, :needed]


def _show(results: dict[str, Any], ways: tuple[str, ...], output: Path, model: str) -> None:
    from rich.table import Table

    from memcore.evaluation.perplexity import summary
    from memcore.evaluation.plots import plot_over_context

    values = summary(results, ways)
    contexts = sorted({context for row in values.values() for context in row})
    table = Table("way", *(f"{context:,}" for context in contexts), "tok/s")
    for way, row in values.items():
        runs = [result for key, result in results.items() if key.rpartition(" / ")[2] == way]
        speed = sum(run["read"] for run in runs) / sum(run["seconds"] for run in runs)
        table.add_row(way, *(f"{row[context]:.2f}" for context in contexts), f"{speed:,.0f}")
    console.print(table)
    plot_over_context(output / "ppl.png", values, title=f"Perplexity of {model}", value="perplexity")
    console.print(f"results: {output / 'ppl.json'}, {output / 'ppl.png'}", soft_wrap=True)
