"""What all evaluations on the command line take, and how they begin and end."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import attrs
import typer

from memcore.cli import completion
from memcore.cli.output import console, loading, print_json
from memcore.cli.settings import memory_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from memcore.config import MemoryConfig

WAYS: Final = ("window", "full", "streaming", "random", "memory")
"""Ways of reading if none is named."""

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Hub id or folder of a decoder model.")]
OutputOption = Annotated[
    Path, typer.Option("--output", help="Folder for the results; what is there already is not done again.")
]
WayOption = Annotated[
    list[str] | None,
    typer.Option(
        "--way",
        help="How to read: window, full, streaming, random, memory, memory:BACKEND; all but the last.",
        autocompletion=completion.words(dict.fromkeys(WAYS, "")),
    ),
]


TrainedOption = Annotated[
    Path | None,
    typer.Option("--trained", help="Folder that `memcore train` wrote: its weights, and its memory to start from."),
]


@attrs.frozen(kw_only=True)
class Setting:
    """What is evaluated.

    Attributes:
        model: loaded; wrapped if its weights were trained with a memory.
        tokenizer: the model's.
        memory: configuration of the memory.
        ways: of reading.
        record: what the results of every evaluation depend on, for a record's settings.
        title: how the model is called in a picture.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    memory: MemoryConfig
    ways: tuple[str, ...]
    record: dict[str, Any]
    title: str


def prepare(
    model: str,
    *,
    trained: Path | None,
    ways: Sequence[str] | None,
    config: str,
    settings: Sequence[str] | None,
    window: int | None,
    device: str,
    dtype: str,
    known: Mapping[str, str] | None = None,
) -> Setting:
    """Load what is evaluated, and find before it what could not be done.

    Args:
        model: hub id or folder.
        trained: folder of trained weights, or None.
        ways: of reading; None for :data:`WAYS`.
        config: file with the memory's configuration; empty for that of the trained weights, or else the defaults.
        settings: fields of it, as ``--set`` takes them.
        window: of the memory, or None.
        device: see :func:`memcore.reader.load_model`.
        dtype: see there.
        known: ways there are; None for those of most evaluations.
    """
    from memcore.evaluation.plots import check_drawing
    from memcore.evaluation.ways import WAYS as MOST
    from memcore.evaluation.ways import check_ways

    check_drawing()
    chosen, base = tuple(ways or WAYS), None
    if trained is None:  # else it depends on what they were trained with
        check_ways(chosen, memory_config(config, settings, window=window), known=known or MOST)
    with loading(model):
        from memcore.fingerprint import model_fingerprint
        from memcore.model_source import load_model, title_of

        loaded: Any
        loaded, tokenizer = load_model(model, device=device, dtype=dtype)
        title = title_of(model)
        # A folder may be moved, or stand elsewhere on another machine, and still hold the same model.
        record: dict[str, Any] = {
            "model": title,
            "fingerprint": model_fingerprint(loaded),
            "dtype": str(loaded.dtype).removeprefix("torch."),
        }
        if trained is not None:
            from memcore.training.saved import WEIGHTS, load_trained

            loaded = load_trained(loaded, trained, tokenizer=tokenizer, merge=True)
            record["trained"] = hashlib.sha256((trained / WEIGHTS).read_bytes()).hexdigest()[:16]
            title = f"{title}, trained ({trained.name})"
            base = loaded.memory.config if hasattr(loaded, "memory") else None
    memory = memory_config(config, settings, base=base, window=window)
    check_ways(chosen, memory, known=known or MOST)
    record["config"] = memory.to_dict()
    return Setting(model=loaded, tokenizer=tokenizer, memory=memory, ways=chosen, record=record, title=title)


def digest(text: str) -> str:
    """Return what tells a text from others, for a record's settings."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def finish(values: object, files: Sequence[Path], *, as_json: bool) -> None:
    """Tell where the results are; or print them, summed up in plain values, and where they are, as JSON."""
    if as_json:
        print_json({"results": values, "files": [str(file) for file in files]})
    else:
        console.print(f"results: {', '.join(map(str, files))}", soft_wrap=True)
