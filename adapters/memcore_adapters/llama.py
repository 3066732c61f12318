"""Llama: every layer is global, one rotation for all of them."""

from __future__ import annotations

from memcore_adapters.decoder import DecoderAdapter


class LlamaAdapter(DecoderAdapter):
    """Adapter for ``model_type`` ``llama``."""
