"""What all evaluations on the command line take, and how they begin and end."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from memcore.cli.output import console, errors, quiet_transformers
from memcore.config import MemoryConfig
from memcore.errors import UnsupportedInputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WAYS: Final = ("window", "full", "streaming", "random", "memory")
"""Ways of reading if none is named."""

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Hub id or folder of a decoder model.")]
OutputOption = Annotated[
    Path, typer.Option("--output", help="Folder for the results; what is there already is not done again.")
]
WayOption = Annotated[
    list[str] | None,
    typer.Option(
        "--way", help="How to read: window, full, streaming, random, memory, memory:BACKEND; all but the last."
    ),
]


def load(model: str, *, device: str, dtype: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer, and say so on a terminal."""
    with errors.status("Loading the model ..."):
        from memcore.reader import load_model

        quiet_transformers()
        return load_model(model, device=device, dtype=dtype)


def settings_for(model: str, loaded: Any, memory: MemoryConfig, **more: object) -> dict[str, Any]:
    """Return what the results of every evaluation depend on, and what those of this one do."""
    dtype = str(loaded.dtype).removeprefix("torch.")
    return {"model": model, "dtype": dtype, **more, "config": memory.to_dict()}


def read_text(path: Path) -> str:
    """Read a UTF-8 file.

    Raises:
        UnsupportedInputError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnsupportedInputError(f"cannot read {str(path)!r} as UTF-8 text: {error}") from error


def digest(text: str) -> str:
    """Return what tells a text from others, for a record's settings."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def title_of(model: str) -> str:
    """Return how a model is called in a picture: without the folder it lies in."""
    return Path(model).name if Path(model).is_dir() else model


def say_where(paths: Sequence[Path]) -> None:
    """Tell where the results are."""
    console.print(f"results: {', '.join(map(str, paths))}", soft_wrap=True)
