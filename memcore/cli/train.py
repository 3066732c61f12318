"""``memcore train``: a model is taught to use its memory, by a configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memcore.cli.output import console, errors, quiet_transformers, reading_progress
from memcore.errors import TrainingError

if TYPE_CHECKING:
    from memcore.training.run import TrainingResult

_INTERRUPTED = 130


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Training configuration, .toml, .yaml or .json.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Only go on with what was begun: an error if nothing was.")
    ] = False,
) -> None:
    """Train a model to use its memory, as in MemLong.

    Long documents are read segment after segment, with memory. Only the weights that train are written, with what
    memcore.load_trained() needs to put them back. The same command goes on where it was interrupted.
    """
    with errors.status("Loading ..."):
        from memcore.training.configuration import TrainingConfig
        from memcore.training.run import begun
        from memcore.training.run import train as run

        quiet_transformers()
    chosen = TrainingConfig.from_file(config)
    if resume and not begun(chosen.output):
        raise TrainingError(f"{chosen.output} holds no training to go on with; begin one without --resume")
    with reading_progress() as start:
        result = run(chosen, note=lambda line: console.print(line, soft_wrap=True), progress=start)
    _show(result)
    if not result.finished:
        errors.print("interrupted; the same command goes on from here")
        raise typer.Exit(_INTERRUPTED)
    console.print(f"trained weights, log and picture: {chosen.output}", soft_wrap=True)


def _show(result: TrainingResult) -> None:
    from rich.table import Table

    table = Table("stage", "trained", "steps", "loss", "evaluated before", "after")
    for stage in result.stages:
        losses = (_number(each) for each in (stage.loss, stage.before, stage.after))
        table.add_row(stage.name, f"{stage.share.trained:,}", f"{stage.steps:,}", *losses)
    console.print(table)


def _number(loss: Any) -> str:
    return "–" if loss is None else f"{loss:.4f}"
