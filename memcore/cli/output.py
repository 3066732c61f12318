"""Where the commands print: results, progress, errors, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

# No markup: "memcore-llm[hnswlib]" is to be shown as it is, and so is ":smile:" in an answer.
console = Console(markup=False, highlight=False, emoji=False)
errors = Console(stderr=True, markup=False, highlight=False, emoji=False)


def print_json(value: object) -> None:
    """Print a value as JSON, for other programs to read."""
    print(json.dumps(value, indent=2))  # noqa: T201


def quiet_transformers() -> None:
    """Keep transformers' own progress bars from getting between ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()


class _Speed(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {self._unit}/s", style="cyan")


@contextmanager
def reading_progress(unit: str = "tokens") -> Iterator[Callable[[str, int | None], Callable[[int, int], None]]]:
    """Show a bar per text, or whatever else, that is read, on a terminal only.

    Args:
        unit: of what is counted.

    Yields:
        a function that takes a description and how much will be read, None if that is not known yet, and returns what
        to call with (done, in all).
    """
    with Progress(
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        _Speed("tok" if unit == "tokens" else unit),
        TimeElapsedColumn(),
        console=errors,
        disable=not errors.is_terminal,
    ) as bars:

        def start(description: str, total: int | None) -> Callable[[int, int], None]:
            task = bars.add_task(description, total=total)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield start
