"""How a measurement is shown and written down."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from memcore.evaluation.machine import describe_machine
from memcore.files import replacing


def console() -> Console:
    """Return where tables go: as wide as the terminal, or wide enough for every table in a file."""
    return Console(width=None if Console().is_terminal else 160)


def spread(values: Sequence[float]) -> str:
    """Return ``median (smallest – largest)``."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} – {max(values):.3g})"


def save(path: Path | None, benchmark: str, settings: dict[str, Any], results: Any) -> None:
    """Write settings, machine and results as JSON, replacing the file in one go."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"benchmark": benchmark, "machine": describe_machine(), "settings": settings, "results": results}
    with replacing(path) as new:
        new.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
