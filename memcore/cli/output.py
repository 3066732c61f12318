"""Where the commands print: results, progress, errors, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from memcore.config import MemoryConfig

# No markup: "memcore-llm[hnswlib]" is to be shown as it is.
console = Console(markup=False, highlight=False)
errors = Console(stderr=True, markup=False, highlight=False)


def memory_config(path: str, **fields: object) -> MemoryConfig:
    """Make a configuration from a file, if one is given, and the options that were given beside it."""
    return MemoryConfig.from_value(path or None, **{name: value for name, value in fields.items() if value is not None})


def print_json(value: object) -> None:
    """Print a value as JSON, for other programs to read."""
    print(json.dumps(value, indent=2))  # noqa: T201


def quiet_transformers() -> None:
    """Keep transformers' own progress bars from getting between ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} tok/s", style="cyan")


@contextmanager
def reading_progress() -> Iterator[Callable[[str, int], Callable[[int, int], None]]]:
    """Show a bar per text that is read, on a terminal only.

    Yields:
        a function that takes a description and how many tokens will be read, and returns what to call with
        (tokens done, tokens in all).
    """
    with Progress(
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tokens"),
        _Speed(),
        TimeElapsedColumn(),
        console=errors,
        disable=not errors.is_terminal,
    ) as bars:

        def start(description: str, tokens: int) -> Callable[[int, int], None]:
            task = bars.add_task(description, total=tokens)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield start
