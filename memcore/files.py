"""Text files read whole, and files that are either written whole or left as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memcore.errors import UnsupportedInputError


def read_text(path: Path) -> str:
    """Read a UTF-8 file.

    Raises:
        UnsupportedInputError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnsupportedInputError(f"cannot read {str(path)!r} as UTF-8 text: {error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a file to write, which then takes the place of ``path`` in one go."""
    new = path.with_name(f"{path.name}.part")
    yield new
    new.replace(path)
