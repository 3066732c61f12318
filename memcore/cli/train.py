"""``memcore train``: a model is taught to use its memory, by a configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from memcore.cli.failures import INTERRUPTED, Interrupted, out_of_memory
from memcore.cli.output import JsonOption, console, notes, print_json, quiet_transformers, reading_progress
from memcore.errors import TrainingError

if TYPE_CHECKING:
    from memcore.training.run import TrainingResult

_SMALLER: Final = (
    "in the configuration fewer rows or a smaller segment in [data], bf16 or gradient_checkpointing in [[stages]], or "
    "a smaller window in [memory] take less"
)


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Training configuration, .toml, .yaml or .json.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Only go on with what was begun: an error if nothing was.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a model to use its memory, as in MemLong.

    Long documents are read segment after segment, with memory. Only the weights that train are written, with what
    memcore.load_trained() needs to put them back. The same command goes on where it was interrupted.
    """
    with notes.status("Loading ..."):
        import attrs

        from memcore.training.configuration import TrainingConfig
        from memcore.training.run import begun
        from memcore.training.run import train as run

        quiet_transformers()
    chosen = TrainingConfig.from_file(config)
    if resume and not begun(chosen.output):
        raise TrainingError(f"{chosen.output} holds no training to go on with; begin one without --resume")
    try:
        with reading_progress() as start:
            result = run(chosen, note=lambda line: notes.print(line, soft_wrap=True), progress=start)
    except Exception as error:
        told = out_of_memory(error, _SMALLER)
        if told is None:
            raise
        raise TrainingError(told) from error
    if as_json:
        print_json({**attrs.asdict(result), "output": str(chosen.output)})
        raise typer.Exit(0 if result.finished else INTERRUPTED)
    _show(result)
    if not result.finished:
        raise Interrupted("the same command goes on from here")
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
