"""DeepSeek V3: latent attention, whose heads end in the dimensions that turn."""

from __future__ import annotations

from typing import Any

import attrs

from memcore.attention_shape import AttentionShape
from memcore.rotary import RotaryGeometry
from memcore_adapters.decoder import DecoderAdapter


class DeepseekV3Adapter(DecoderAdapter):
    """Adapter for ``model_type`` ``deepseek_v3``."""

    def geometry(self, decoder: Any, layer_idx: int) -> RotaryGeometry | None:
        """Return the rotation, of what comes after the dimensions without position."""
        # Its interleaved weights make no difference: what they rotate is laid out as halves.
        geometry = super().geometry(decoder, layer_idx)
        return None if geometry is None else attrs.evolve(geometry, offset=decoder.config.qk_nope_head_dim)

    def attention_shape(self, config: Any, layer_idx: int) -> AttentionShape:
        """Return the shape of the keys and values that are made of the latents, which are what the model caches."""
        return AttentionShape(
            queries=config.num_attention_heads,
            heads=config.num_attention_heads,
            key_size=config.qk_nope_head_dim + config.qk_rope_head_dim,
            value_size=config.v_head_dim,
            cached=config.kv_lora_rank + config.qk_rope_head_dim,
        )
