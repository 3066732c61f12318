"""Gemma 3: one global layer after every five sliding ones, each kind with a rotation of its own."""

from __future__ import annotations

from typing import Any

from memcore.errors import UnsupportedModelError
from memcore.rotary import RotaryGeometry
from memcore_adapters.decoder import DecoderAdapter


class Gemma3Adapter(DecoderAdapter):
    """Adapter for ``model_type`` ``gemma3_text``, and for the text of ``gemma3``."""

    def check(self, decoder: Any) -> None:
        """Refuse the variant whose tokens see each other both ways: memory is for causal models."""
        super().check(decoder)
        if getattr(decoder.config, "use_bidirectional_attention", False):
            raise UnsupportedModelError("this Gemma 3 attends in both directions (use_bidirectional_attention)")

    def geometry(self, decoder: Any, layer_idx: int) -> RotaryGeometry:
        """Return the rotation of the layer's kind."""
        kind = decoder.config.layer_types[layer_idx]
        return RotaryGeometry(
            inv_freq=getattr(decoder.rotary_emb, f"{kind}_inv_freq"),
            attention_scaling=getattr(decoder.rotary_emb, f"{kind}_attention_scaling"),
        )
