"""Runs the command line as a user would, in this process."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner

from memcore.cli import app


def run(*arguments: str, stdin: str | None = None, env: dict[str, str] | None = None) -> Any:
    """Run ``memcore`` with these arguments and return typer's result: exit code, output, what was raised."""
    return CliRunner().invoke(app, list(arguments), input=stdin, env={"COLUMNS": "200", **(env or {})})
