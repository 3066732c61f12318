"""A measurement in a process of its own: its memory is its own, and what fails takes nothing else with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent


def measured(
    script: str,
    what: Mapping[str, Any],
    *,
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
    show: bool = False,
) -> dict[str, Any]:
    """Run one of the scripts beside this one and return its result, or ``{"error": ...}``.

    Args:
        script: its file name. It gets one argument, JSON, and prints its result as the last line, JSON.
        what: the argument; a temporary ``folder`` is added unless it names one.
        python: the interpreter, of another virtual environment say.
        environment: variables on top of this process's.
        prepare: called in the new process before the script starts.
        show: whether what it says on standard error is passed on meanwhile.
    """
    last = ""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as printed:
        command = [python, str(HERE / script), json.dumps({"folder": folder, **what})]
        with subprocess.Popen(
            command,
            stdout=printed,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
            preexec_fn=prepare,
        ) as child:
            assert child.stderr is not None
            for line in child.stderr:
                last = line.strip() or last
                if show:
                    print(line, end="", file=sys.stderr, flush=True)
        if child.returncode:
            return {"error": last or f"exit status {child.returncode}"}
        printed.seek(0)
        found = json.loads(printed.read().splitlines()[-1])
    assert isinstance(found, dict)
    return found
