"""Qwen2: as Llama; layers that ``use_sliding_window`` makes sliding stay as they are."""

from __future__ import annotations

from memcore_adapters.decoder import DecoderAdapter


class Qwen2Adapter(DecoderAdapter):
    """Adapter for ``model_type`` ``qwen2``."""
