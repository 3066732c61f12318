"""``memcore doctor``: what a bug report needs to say."""

from __future__ import annotations

import re
from typing import Any, Final

import typer

from memcore.cli.failures import FAILED
from memcore.cli.output import JsonOption, console, print_json

_DISTRIBUTION: Final = "memcore-llm"
_BROUGHT: Final = ("huggingface-hub", "numpy", "tokenizers")  # by those that it requires
_FOR_DEVELOPMENT: Final = ("dev", "docs")


def doctor(as_json: JsonOption = False) -> None:
    """Check the installation.

    Shows versions, devices, memory, backends and plugins. Exits with 1 if a plugin has a problem.
    """
    from memcore.plugins import registry

    reports = registry().reports
    broken = [report for report in reports if report.status in ("failed", "problem")]
    found = {
        "system": _system(),
        "packages": _versions(),
        "devices": _devices(),
        "backends": _backends(),
        "plugins": {report.name: "; ".join(report.error) if report in broken else report.status for report in reports},
    }
    if as_json:
        print_json(found)
    else:
        from rich.table import Table

        for title, rows in found.items():
            table = Table(title=title, title_justify="left", show_header=False, box=None, title_style="bold")
            for name, value in rows.items():
                table.add_row(f"  {name}", str(value))
            console.print(table)
            console.print()
    if broken:
        raise typer.Exit(FAILED)


def _system() -> dict[str, str]:
    import os
    import platform

    import psutil

    memory = psutil.virtual_memory()
    return {
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "cpus": str(os.cpu_count()),
        "memory": f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} GiB available",
    }


def _versions() -> dict[str, str]:
    from importlib import metadata

    import memcore

    versions = {"memcore": memcore.__version__}
    for package in _packages():
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _packages() -> list[str]:
    """Return the names of what memcore can use, with every extra but those for its development."""
    from importlib import metadata

    names = list(_BROUGHT)
    for requirement in metadata.requires(_DISTRIBUTION) or ():
        extra = re.search(r"extra *== *.([\w-]+)", requirement)
        name = re.match(r"[\w.-]+", requirement)
        if name is not None and name[0] != _DISTRIBUTION and not (extra and extra[1] in _FOR_DEVELOPMENT):
            names.append(name[0])
    return sorted(set(names))


def _devices() -> dict[str, str]:
    try:
        import torch
    # What is broken here is what doctor is there to tell: a CUDA library that does not load is an OSError.
    except (ImportError, OSError) as error:
        return {"torch": f"cannot be imported: {error}"}
    devices = {"cpu": f"{torch.get_num_threads()} threads"}
    for index in range(torch.cuda.device_count()):
        properties: Any = torch.cuda.get_device_properties(index)
        devices[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB"
    if not torch.cuda.is_available():
        devices["cuda"] = "not available" if torch.version.cuda else "not available: this torch was built without it"
    if torch.backends.mps.is_available():
        devices["mps"] = "available"
    return devices


def _backends() -> dict[str, str]:
    from memcore.errors import MemcoreError
    from memcore.plugins import registry

    states = {}
    for name in registry().components("backends"):
        try:
            about = registry().load_component("backends", name).about()
            states[name] = f"ok: {about}" if about else "ok"
        except MemcoreError as error:
            states[name] = str(error)
    return states
