"""Whether what a plugin offers is what it must be: found out when it is loaded, not in the middle of a text."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any, Final, Literal, get_args

import attrs

from memcore.options import describe

Kind = Literal["backends", "embedders", "eviction_policies", "adapters"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

NOUNS: Final[dict[Kind, str]] = {
    "backends": "backend",
    "embedders": "embedder",
    "eviction_policies": "eviction policy",
    "adapters": "adapter",
}
"""What a component of each kind is called."""

# Where the class is that it must derive from; imported only when a component is loaded.
_BASES: Final[dict[Kind, tuple[str, str]]] = {
    "backends": ("memcore.backend", "MemoryBackend"),
    "embedders": ("memcore.embedder", "ChunkEmbedder"),
    "eviction_policies": ("memcore.eviction", "EvictionPolicy"),
    "adapters": ("memcore.adapter", "ModelAdapter"),
}


def problem_with_class(kind: Kind, cls: object) -> str:
    """Return why a component cannot be used, to be put behind its name; empty if it can.

    It must be a class of its kind that implements every method, its ``Options`` an attrs class, and those of a
    persistent backend must have ``path`` and ``read_only``.
    """
    module, base_name = _BASES[kind]
    base: type = getattr(importlib.import_module(module), base_name)
    if not isinstance(cls, type) or not issubclass(cls, base):
        return f" must be a subclass of memcore.{base_name}, got {describe(cls)}"
    if inspect.isabstract(cls):
        methods = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
        return f": {cls.__qualname__} does not implement {methods}"
    if hasattr(base, "Options") and (problem := _problem_with_options(cls)):
        return f": {cls.__qualname__}.Options {problem}"
    return ""


def _problem_with_options(cls: Any) -> str:
    from memcore.backend import PersistentBackend

    options = cls.Options
    if not isinstance(options, type) or not attrs.has(options):
        return f"must be an attrs class, got {describe(options)}"
    try:
        fields = attrs.fields_dict(attrs.resolve_types(options))
    except (NameError, TypeError) as error:
        return f"has annotations that mean nothing where it is defined (import what they name): {error}"
    if not issubclass(cls, PersistentBackend):
        return ""
    if "path" not in fields or fields["path"].type is not Path:
        return "must have a field path: pathlib.Path, as the backend is persistent"
    read_only = fields.get("read_only")
    if read_only is None or read_only.type is not bool or read_only.default is not False:
        return "must have a field read_only: bool = False, as the backend is persistent"
    return ""
