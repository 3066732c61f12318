"""How a command that fails ends: one line on standard error, or one JSON document, and an exit code."""

from __future__ import annotations

from typing import Final

from memcore.cli.output import errors, print_json
from memcore.errors import MemcoreError

FAILED: Final = 1
"""Exit code of a command that could not do what it was asked, or found something damaged."""

MISUSED: Final = 2
"""Exit code of a command line that is none: an unknown option, a missing argument, a number out of range."""

INTERRUPTED: Final = 130
"""Exit code after Ctrl-C, as shells have it: 128 and the number of the signal."""


class Interrupted(Exception):  # noqa: N818  (nothing went wrong)
    """Ctrl-C ended a command; the message says what there is now and how to go on."""


def told(error: BaseException) -> str | None:
    """Return what a user is told of an error in one line, or None if it is a bug and needs its traceback."""
    if isinstance(error, MemcoreError):
        return str(error)
    if isinstance(error, BrokenPipeError):  # whoever reads the output has seen enough
        return None
    if isinstance(error, OSError):
        return str(error)
    # torch has one of its own, and is not imported for the sake of a name.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        first = str(error).partition("\n")[0]
        cure = "--dtype bfloat16, a smaller --window or a smaller model take less, and --device cpu has more"
        return f"there is not enough memory{f': {first}' if first else ''}; {cure}"
    return None


def show(kind: str, message: str, *, as_json: bool, style: str = "bold red", label: str = "error: ") -> None:
    """Tell of a failure: as JSON on standard output, or as a line on standard error.

    Args:
        kind: name of the exception's class.
        message: what it says.
        as_json: whether JSON was asked for.
        style: of the line.
        label: before the line.
    """
    if as_json:
        print_json({"error": {"type": kind, "message": message}})
    else:
        errors.print(f"{label}{message}", style=style, soft_wrap=True)
