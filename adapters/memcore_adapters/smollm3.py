"""SmolLM3: every fourth layer has no positions at all."""

from __future__ import annotations

from typing import Any

from memcore.rotary import RotaryGeometry
from memcore_adapters.decoder import DecoderAdapter


class SmolLM3Adapter(DecoderAdapter):
    """Adapter for ``model_type`` ``smollm3``."""

    def geometry(self, decoder: Any, layer_idx: int) -> RotaryGeometry | None:
        """Return the rotation, or None for a layer without."""
        return super().geometry(decoder, layer_idx) if decoder.config.no_rope_layers[layer_idx] else None
