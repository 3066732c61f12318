"""Where the commands print: results, progress, errors, JSON."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console

from memcore.errors import MemcoreWarning

if TYPE_CHECKING:
    from rich.progress import Task

# No markup: "memcore-llm[hnswlib]" is to be shown as it is, and so is ":smile:" in an answer.
console = Console(markup=False, highlight=False, emoji=False)
errors = Console(stderr=True, markup=False, highlight=False, emoji=False)
notes = Console(stderr=True, markup=False, highlight=False, emoji=False)
"""Progress, and what is worth knowing beside the result; silent with ``--quiet``."""

_HUB_BARS: Final = "HF_HUB_DISABLE_PROGRESS_BARS"  # the user may have chosen


JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document, also of an error.")]


def print_json(value: object) -> None:
    """Print a value as JSON, for other programs to read."""
    print(json.dumps(value, indent=2), flush=True)  # noqa: T201


@contextmanager
def warnings_in_a_line() -> Iterator[None]:
    """Show memcore's warnings as a command line has them, without the line of code that they came from."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **named: Any) -> None:
            if issubclass(category, MemcoreWarning):
                notes.print(f"warning: {message}", style="yellow", soft_wrap=True)
            else:
                others(message, category, *where, **named)

        warnings.showwarning = show
        yield


def quiet_transformers() -> None:
    """Keep the progress bars of transformers and of the hub from getting between ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()


@contextmanager
def loading(model: str, what: str = "Loading the model ...") -> Iterator[None]:
    """Say that a model is loaded, while that is done.

    On a terminal what has to be downloaded shows the hub's bars, which a spinner would tear to pieces.

    Args:
        model: hub id or folder; empty for what is not downloaded.
        what: to say.
    """
    hub = notes.is_terminal and not notes.quiet and _HUB_BARS not in os.environ and not Path(model).exists()
    with notes.status(what):
        quiet_transformers()
        if not hub:
            yield
            return
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented there
        disable_progress_bars,
        enable_progress_bars,
    )

    notes.print("Loading the model, which is downloaded the first time ...", style="dim")
    enable_progress_bars()
    try:
        yield
    finally:
        disable_progress_bars()


@contextmanager
def reading_progress(unit: str = "tokens") -> Iterator[Callable[[str, int | None], Callable[[int, int], None]]]:
    """Show a bar per text, or whatever else, that is read, on a terminal only.

    Args:
        unit: of what is counted.

    Yields:
        a function that takes a description and how much will be read, None if that is not known yet, and returns what
        to call with (done, in all).
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.0f} {'tok' if unit == 'tokens' else unit}/s", style="cyan")

    with Progress(
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        Speed(),
        TimeElapsedColumn(),
        console=notes,
        disable=notes.quiet or not notes.is_terminal,
    ) as bars:

        def start(description: str, total: int | None) -> Callable[[int, int], None]:
            task = bars.add_task(description, total=total)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield start
