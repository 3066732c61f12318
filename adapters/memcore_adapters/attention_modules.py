"""The attention modules of a decoder, told by what they call and not by their names."""

from __future__ import annotations

import inspect
from typing import Any


def attention_modules(decoder: Any) -> dict[int, Any]:
    """Return the modules whose forward asks the transformers attention registry, by the index of their layer."""
    return {
        module.layer_idx: module
        for module in decoder.modules()
        if isinstance(getattr(module, "layer_idx", None), int) and _uses_registry(type(module))
    }


def _uses_registry(module_class: type) -> bool:
    code = getattr(inspect.unwrap(module_class.forward), "__code__", None)  # type: ignore[attr-defined]
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names
