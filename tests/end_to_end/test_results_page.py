"""The tables of docs/results.md are what its studies wrote, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_shows_what_the_studies_found() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "results.py"), "write", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
