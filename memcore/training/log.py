"""The losses of a training: lines of JSON on disk, and a picture of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from memcore.errors import TrainingError
from memcore.files import parse_json, replacing

LOSS = "loss"
EVALUATION = "eval_loss"


class TrainingLog:
    """A file with one line of JSON for each group of values, which outlives interruptions.

    Attributes:
        lines: ``stage``, ``step`` and values by name.
    """

    def __init__(self, path: Path) -> None:
        """Open a log, or begin one in a folder that exists.

        Raises:
            TrainingError: what is there is none.
        """
        self._path = path
        self.lines: list[dict[str, Any]] = []
        if path.exists():
            try:
                text = path.read_text(encoding="utf-8", errors="replace")  # the end of the process may cut a letter off
            except OSError as error:
                raise TrainingError(f"cannot read {path}: {error}") from error
            self.lines = [line for line in map(_parse, text.splitlines()) if line]

    def add(self, stage: str, step: int, values: dict[str, float]) -> None:
        """Write a line."""
        line = {"stage": stage, "step": step, **values}
        self.lines.append(line)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def rewind(self, stage: str, step: int) -> None:
        """Take back what was written of a stage after this step, from which it goes on."""
        self.lines = [line for line in self.lines if line["stage"] != stage or line["step"] <= step]
        with replacing(self._path) as new:
            new.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")

    def values(self, stage: str, name: str) -> dict[int, float]:
        """Return the values of one name by step, in order."""
        return {line["step"]: line[name] for line in self.lines if line["stage"] == stage and name in line}

    def picture(self, path: Path, title: str) -> None:
        """Draw the losses of all stages, one after the other.

        Args:
            path: of the picture, ``.png`` or ``.svg``.
            title: of the picture.

        Raises:
            MissingDependencyError: matplotlib is not installed.
        """
        from memcore.evaluation.plots import canvas

        figure, axes = canvas(title)
        begin = 0
        for number, stage in enumerate(dict.fromkeys(line["stage"] for line in self.lines)):
            for name, style in ((LOSS, {"alpha": 0.5}), (EVALUATION, {"marker": "o", "linestyle": "--"})):
                values = self.values(stage, name)
                if values:
                    label = f"{stage}, {'training' if name == LOSS else 'evaluation'}"
                    places = [begin + step for step in values]
                    axes.plot(places, list(values.values()), color=f"C{number}", label=label, **style)
            begin += max(line["step"] for line in self.lines if line["stage"] == stage)
        axes.set_xlabel("step")
        axes.set_ylabel("loss per token")
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(path, dpi=150)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        found = parse_json(line)
    except ValueError:
        return None  # cut off by the end of the process
    values: dict[str, Any] = found if isinstance(found, dict) else {}
    numbers = {name: value for name, value in values.items() if name != "stage"}
    if type(numbers.get("step")) is not int or not isinstance(values.get("stage"), str) or not _are_numbers(numbers):
        raise TrainingError(f"not a line of a training's log: {line[:200]!r}")
    return values


def _are_numbers(values: dict[str, Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values.values())
