"""The adapters, registered with memcore by entry point."""

from __future__ import annotations

import functools
import importlib

from memcore.hookspecs import Component, hookimpl

FAMILIES = {  # config.model_type: module and class; a family that differs in nothing is served by the base
    "cohere": "interleaved:InterleavedAdapter",
    "cohere2": "cohere2:Cohere2Adapter",
    "deepseek_v3": "deepseek_v3:DeepseekV3Adapter",
    "gemma": "decoder:DecoderAdapter",
    "gemma2": "decoder:DecoderAdapter",
    "gemma3_text": "decoder:DecoderAdapter",
    "gpt2": "gpt2:GPT2Adapter",
    "gpt_neox": "decoder:DecoderAdapter",
    "gpt_oss": "decoder:DecoderAdapter",
    "granite": "decoder:DecoderAdapter",
    "llama": "decoder:DecoderAdapter",
    "mistral": "decoder:DecoderAdapter",
    "mixtral": "decoder:DecoderAdapter",
    "olmo2": "decoder:DecoderAdapter",
    "opt": "opt:OPTAdapter",
    "phi": "decoder:DecoderAdapter",
    "phi3": "phi3:Phi3Adapter",
    "qwen2": "decoder:DecoderAdapter",
    "qwen3": "decoder:DecoderAdapter",
    "qwen3_moe": "decoder:DecoderAdapter",
    "smollm3": "smollm3:SmolLM3Adapter",
    "stablelm": "stablelm:StableLmAdapter",
    "starcoder2": "decoder:DecoderAdapter",
}


def _load(home: str) -> type:
    module, name = home.split(":")
    found: type = getattr(importlib.import_module(f"memcore_adapters.{module}"), name)
    return found


@hookimpl
def memcore_adapters() -> list[Component]:
    """Offer one adapter per model type."""
    return [
        Component(name=model_type, summary=f"{model_type} decoders", load=functools.partial(_load, home))
        for model_type, home in FAMILIES.items()
    ]
