"""Loading a model. Where it comes from and how is checked first, as the loading itself says less of what is wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from memcore.errors import ConfigError, UnsupportedModelError
from memcore.options import alternatives, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES: Final = ("auto", "float32", "bfloat16", "float16", "float64")
"""Names of what weights can be loaded in; ``"auto"`` is the checkpoint's own."""

_SHORT: Final = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16", "float": "float32"}

_CONFIG: Final = "config.json"

_ADAPTER: Final = "adapter_config.json"  # peft's, which names the model


def load_model(name: str, *, device: str = "", dtype: str = "auto") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a decoder and its tokenizer.

    Args:
        name: a hub id or a folder.
        device: where to put it; empty for CUDA if there is one, else the CPU.
        dtype: ``"auto"`` for the checkpoint's own, or the name of a torch dtype, e.g. ``"bfloat16"``.

    Raises:
        UnsupportedModelError: it cannot be loaded, or is no decoder.
        ConfigError: there is no such device or dtype.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_source(name)
    check_dtype(dtype)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    what = f"the tokenizer of {name!r}"
    # OSError: no such hub id, or no file in the folder. ValueError: no decoder, or a name that cannot be one.
    # RuntimeError: weights of other shapes.
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        what = f"{name!r} as a decoder"
        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    except (OSError, ValueError, RuntimeError) as error:
        raise UnsupportedModelError(f"cannot load {what}: {' '.join(str(error).split())}") from error
    return model.to(device).eval(), tokenizer


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
