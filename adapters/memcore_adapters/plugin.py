"""The adapters, registered with memcore by entry point."""

from __future__ import annotations

import functools
import importlib

from memcore.hookspecs import Component, hookimpl

FAMILIES = {  # config.model_type: (module, class)
    "gemma3": ("gemma3", "Gemma3Adapter"),
    "gemma3_text": ("gemma3", "Gemma3Adapter"),
    "llama": ("llama", "LlamaAdapter"),
    "qwen2": ("qwen2", "Qwen2Adapter"),
}


def _load(module: str, name: str) -> type:
    found: type = getattr(importlib.import_module(f"memcore_adapters.{module}"), name)
    return found


@hookimpl
def memcore_adapters() -> list[Component]:
    """Offer one adapter per model type."""
    return [
        Component(name=model_type, summary=f"{model_type} decoders", load=functools.partial(_load, *home))
        for model_type, home in FAMILIES.items()
    ]
