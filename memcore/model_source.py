"""Where a model comes from and how it is to be loaded, checked before the loading, which says less of what is wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import torch

from memcore.errors import ConfigError, UnsupportedModelError
from memcore.options import alternatives, nearest

DTYPES: Final = ("auto", "float32", "bfloat16", "float16", "float64")
"""Names of what weights can be loaded in; ``"auto"`` is the checkpoint's own."""

_SHORT: Final = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16", "float": "float32"}

_CONFIG: Final = "config.json"

_ADAPTER: Final = "adapter_config.json"  # peft's, which names the model


def check_source(name: str) -> None:
    """Raise UnsupportedModelError if a name is that of a place on disk, and there is no model there."""
    place = Path(name)
    if not name.strip():
        raise UnsupportedModelError("the model's name is empty: give a hub id, or a folder that holds a model")
    if place.is_file():
        cure = f"name the folder that holds it, {str(place.parent)!r}" if (place.parent / _CONFIG).exists() else ""
        raise UnsupportedModelError(f"{name!r} is a file and no model; {cure or 'a model is a folder, or a hub id'}")
    if place.is_dir():
        if not any((place / file).exists() for file in (_CONFIG, _ADAPTER)):
            inside = sorted(str(found.parent) for found in place.glob(f"*/{_CONFIG}"))
            cure = f"; is it {inside[0]!r}?" if inside else "; save_pretrained() makes one"
            raise UnsupportedModelError(f"there is no model in {name!r}: it has no {_CONFIG}{cure}")
    elif place.is_absolute() or name.startswith((".", "~")) or "\\" in name or name.count("/") > 1:
        raise UnsupportedModelError(f"there is no folder {name!r}; a hub id has the form 'owner/name'")


def title_of(name: str) -> str:
    """Return what a model is called: the name of its folder, or its hub id."""
    return Path(os.path.abspath(name)).name if Path(name).is_dir() else name


def check_dtype(dtype: str) -> None:
    """Raise ConfigError if a model cannot be loaded in it."""
    if dtype not in DTYPES:
        meant = f", did you mean {_SHORT[dtype]!r}?" if dtype in _SHORT else nearest(dtype, DTYPES)
        raise ConfigError(f"there is no dtype {dtype!r} for weights{meant}; it can be {alternatives(DTYPES)}")


def check_device(device: str) -> None:
    """Raise ConfigError if there is no such device here."""
    try:
        kind, index = torch.device(device).type, torch.device(device).index
    except RuntimeError as error:
        raise ConfigError(f"there is no device {device!r}; it can be 'cpu', 'cuda', 'cuda:1' or 'mps'") from error
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            why = "finds no GPU" if torch.version.cuda or torch.version.hip else "was built without CUDA"
            raise ConfigError(f"device {device!r} cannot be used: this torch {why} (see `memcore doctor`); use 'cpu'")
        if index is not None and index >= count:  # type: ignore[redundant-expr]  # torch says that it is always there
            raise ConfigError(f"there is no device {device!r}: there are {count}, the first of them 'cuda:0'")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device {device!r} cannot be used: this machine or this torch has no such GPU; use 'cpu'")
