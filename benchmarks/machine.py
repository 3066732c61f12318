"""What a measurement was made with, and how it is written down."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

import memcore


def describe() -> dict[str, Any]:
    """Return machine and versions."""
    cpu = next((line.split(":", 1)[1].strip() for line in _cpu_info() if line.startswith("model name")), "")
    return {
        "cpu": cpu or platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "memcore": memcore.__version__,
    }


def console() -> Console:
    """Return where tables go: as wide as the terminal, or wide enough for every table in a file."""
    return Console(width=None if Console().is_terminal else 120)


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def spread(values: Sequence[float]) -> str:
    """Return ``median (smallest – largest)``."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} – {max(values):.3g})"


def save(path: Path | None, benchmark: str, settings: dict[str, Any], results: Any) -> None:
    """Write settings, machine and results as JSON, replacing the file in one go."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".part")
    record = {"benchmark": benchmark, "machine": describe(), "settings": settings, "results": results}
    new.write_text(json.dumps(record, indent=1) + "\n")
    new.replace(path)
