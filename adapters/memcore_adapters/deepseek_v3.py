"""DeepSeek V3: latent attention, whose heads end in the dimensions that turn."""

from __future__ import annotations

from typing import Any

import attrs

from memcore.rotary import RotaryGeometry
from memcore_adapters.decoder import DecoderAdapter


class DeepseekV3Adapter(DecoderAdapter):
    """Adapter for ``model_type`` ``deepseek_v3``."""

    def geometry(self, decoder: Any, layer_idx: int) -> RotaryGeometry | None:
        """Return the rotation, of what comes after the dimensions without position."""
        # Its interleaved weights make no difference: what they rotate is laid out as halves.
        geometry = super().geometry(decoder, layer_idx)
        return None if geometry is None else attrs.evolve(geometry, offset=decoder.config.qk_nope_head_dim)
