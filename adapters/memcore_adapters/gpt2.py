"""GPT-2: learned positions, and variants of attention that only its own eager code knows."""

from __future__ import annotations

from typing import Any

from memcore.errors import UnsupportedModelError
from memcore_adapters.learned_positions import LearnedPositionsAdapter


class GPT2Adapter(LearnedPositionsAdapter):
    """Adapter for ``model_type`` ``gpt2``."""

    def check(self, decoder: Any) -> None:
        """Refuse cross-attention, and upcast attention, which does not go through the registry."""
        super().check(decoder)
        config = decoder.config
        if config.add_cross_attention:
            raise UnsupportedModelError("this GPT-2 has cross-attention (add_cross_attention); memory is for decoders")
        if config.reorder_and_upcast_attn and config._attn_implementation == "eager":
            raise UnsupportedModelError(
                "reorder_and_upcast_attn makes eager attention bypass the transformers attention registry; load the "
                "model with attn_implementation='sdpa', which does not upcast, or with reorder_and_upcast_attn=False"
            )
