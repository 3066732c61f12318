"""Pictures of evaluations, by matplotlib."""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from memcore.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def check_drawing() -> None:
    """Find before hours of work that there could be no picture of it.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependencyError('pictures need matplotlib: pip install "memcore-llm[eval]"')


def canvas(title: str) -> tuple[Figure, Axes]:
    """Return an empty picture with a title, which needs no screen.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figure, (axes,) = panels(title, 1, height=4.5)
    return figure, axes


def panels(title: str, count: int, *, height: float) -> tuple[Figure, list[Axes]]:
    """Return an empty picture ``height`` inches high, and its panels from left to right.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    check_drawing()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(7, 2.5 * count), height), layout="constrained")
    figure.suptitle(title)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


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


def plot_heat_maps(
    path: Path, tables: Mapping[str, Mapping[float, Mapping[int, float]]], *, title: str, value: str
) -> None:
    """Draw one map for each way of reading: depth downwards, length to the right.

    Args:
        path: of the picture, ``.png`` or ``.svg``.
        tables: values from 0 to 1 by way, depth and length in tokens; what is missing stays white.
        title: of the picture.
        value: what the values are.
    """
    depths = sorted({depth for table in tables.values() for depth in table})
    lengths = sorted({length for table in tables.values() for row in table.values() for length in row})
    figure, axes = panels(title, len(tables), height=max(2.5, 1.5 + 0.35 * len(depths)))
    for each, (way, table) in zip(axes, tables.items(), strict=True):
        values = [[table.get(depth, {}).get(length, math.nan) for length in lengths] for depth in depths]
        picture = each.imshow(values, vmin=0, vmax=1, cmap="RdYlBu", aspect="auto")
        for row, column in itertools.product(range(len(depths)), range(len(lengths))):
            if not math.isnan(values[row][column]):
                each.text(column, row, f"{values[row][column]:.0%}", ha="center", va="center", fontsize=8)
        each.set_title(way)
        each.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], rotation=45, ha="right")
        each.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths] if each is axes[0] else [])
        each.set_xlabel("length, tokens")
    axes[0].set_ylabel("depth")
    figure.colorbar(picture, ax=axes, label=value)
    figure.savefig(path, dpi=150)


def plot_bars(path: Path, table: Mapping[str, Mapping[str, tuple[float, float]]], *, title: str, value: str) -> None:
    """Draw a group of bars for each row, one bar for each way of reading, with what it may be off by.

    Args:
        path: of the picture, ``.png`` or ``.svg``.
        table: value, from 0 to 1, and its standard error (NaN for none) by row and way.
        title: of the picture.
        value: what the values are.
    """
    figure, axes = canvas(title)
    ways = list(next(iter(table.values())))
    wide = 0.8 / len(ways)
    for number, way in enumerate(ways):
        places = [row + (number - (len(ways) - 1) / 2) * wide for row in range(len(table))]
        means, errors = zip(*(values[way] for values in table.values()), strict=True)
        axes.bar(places, means, width=wide, label=way, yerr=errors, capsize=2)
    axes.set_xticks(range(len(table)), list(table))
    axes.set_ylim(0, 1)
    axes.set_ylabel(value)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)
