"""How a command that fails ends: one line on standard error, or one JSON document, and an exit code."""

from __future__ import annotations

from typing import Final

from memcore.cli.output import errors, print_json
from memcore.errors import MemcoreError

FAILED: Final = 1
"""Exit code of a command that could not do what it was asked, or found something damaged."""

INTERRUPTED: Final = 130
"""Exit code after Ctrl-C, as shells have it: 128 and the number of the signal."""

_SMALLER: Final = "--dtype bfloat16, a smaller --window or a smaller model take less, and --device cpu has more"


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
    return out_of_memory(error, _SMALLER)


def out_of_memory(error: BaseException, cure: str) -> str | None:
    """Return what a user is told if that was the error, with what takes less; None if it was another."""
    # torch has one of its own, and is not imported for the sake of a name.
    if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":
        return None
    first = str(error).partition("\n")[0]
    return f"there is not enough memory{f': {first}' if first else ''}; {cure}"


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
