"""Pictures of evaluations, by matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from memcore.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def canvas(title: str) -> tuple[Figure, Axes]:
    """Return an empty picture with a title, which needs no screen.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError('pictures need matplotlib: pip install "memcore-llm[eval]"') from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes


def plot_over_context(path: Path, table: Mapping[str, Mapping[int, float]], *, title: str, value: str) -> None:
    """Draw one line for each way of reading over the length of context.

    Args:
        path: of the picture, ``.png`` or ``.svg``.
        table: values by way and context in tokens.
        title: of the picture.
        value: what the values are.
    """
    figure, axes = canvas(title)
    for way, values in table.items():
        axes.plot(list(values), list(values.values()), marker="o", label=way)
    contexts = sorted({context for values in table.values() for context in values})
    axes.set_xscale("log", base=2)
    axes.set_xticks(contexts, [f"{context:,}" for context in contexts])
    axes.minorticks_off()
    axes.set_xlabel("context, tokens")
    axes.set_ylabel(value)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
