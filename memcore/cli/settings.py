"""The memory configuration on the command line: a file, options for the usual fields, and ``--set`` for all."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from memcore.cli import completion
from memcore.errors import ConfigError
from memcore.files import parse_json

if TYPE_CHECKING:
    from memcore.config import MemoryConfig

ON_DISK: Final = "lmdb"
"""The backend that keeps a memory on disk if no other is named."""

ConfigOption = Annotated[str, typer.Option("--config", help="Configuration file, .toml, .yaml or .json.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Any field of the configuration, e.g. chunk_size=32 or backend_options.path=memory; may be repeated.",
    ),
]
BackendOption = Annotated[
    str | None,
    typer.Option(
        "--backend",
        help="Where the memory is kept: see `memcore plugins`.",
        autocompletion=completion.components("backends"),
    ),
]
WindowOption = Annotated[int | None, typer.Option("--window", help="Tokens the model attends to directly.")]
TopKOption = Annotated[int | None, typer.Option("--top-k", help="Chunks brought back per retrieval.")]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        help="Where to run, e.g. cuda; found out if not given.",
        autocompletion=completion.words(completion.DEVICES),
    ),
]
DtypeOption = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="float32, bfloat16, float16, or auto for the checkpoint's own.",
        autocompletion=completion.words(completion.DTYPES),
    ),
]


PathOption = Annotated[
    str, typer.Option("--path", help=f"Folder of a memory on disk: backend {ON_DISK!r} unless another is named.")
]


def memory_config(
    file: str,
    settings: Iterable[str] | None = (),
    *,
    path: str = "",
    read_only: bool = False,
    base: MemoryConfig | None = None,
    **fields: object,
) -> MemoryConfig:
    """Make a configuration from a file, if one is given, and what was given beside it, which takes precedence.

    Args:
        file: path of a configuration file; empty for the defaults.
        settings: ``field=value`` or ``field.option=value``, the value as JSON, or else taken as text.
        path: folder of a memory on disk; empty for none.
        read_only: whether to open that for reading only.
        base: what to start from without a file; None for the defaults.
        **fields: fields by name; None for what was not given.

    Raises:
        ConfigError: something in it cannot be used.
    """
    from memcore.config import MemoryConfig, read_file

    values: dict[str, Any] = {}
    if file:
        values = copy.deepcopy(dict(read_file(Path(file))))
    elif base is not None:
        values = base.to_dict()
    if path:
        values |= {"backend": ON_DISK} if values.get("backend", "exact") == "exact" else {}
        _options_of(values)["path"] = path
    values |= {name: value for name, value in fields.items() if value is not None}
    for setting in settings or ():
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set takes FIELD=VALUE, got {setting!r}")
        *outer, last = name.split(".")
        target = values
        for part in outer:
            inner = target.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {setting}: {part} has no fields of its own")
            target = inner
        target[last] = _value(text)
    if read_only:
        _options_of(values).setdefault("read_only", True)
    try:
        return MemoryConfig.from_dict(values)
    except ConfigError:
        if file:
            MemoryConfig.from_file(file)  # what is wrong with the file alone is said of the file
        raise


def _options_of(values: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the backend, to be changed; of something else a copy that nobody sees."""
    options = values.setdefault("backend_options", {})
    return options if isinstance(options, dict) else {}


def check_on_disk(backend: str) -> None:
    """Raise ConfigError if a backend is none that outlives the process."""
    from memcore.backend import PersistentBackend
    from memcore.plugins import registry

    if not issubclass(registry().load_component("backends", backend), PersistentBackend):
        raise ConfigError(
            f"backend {backend!r} forgets everything when its command ends: give --path FOLDER, and no --backend or "
            f"one that keeps its memory, such as {ON_DISK!r}"
        )


def _value(text: str) -> object:
    try:
        value: object = parse_json(text)
    except ValueError:
        return text
    return value
