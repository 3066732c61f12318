"""OPT: learned positions, counted over real tokens only."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from memcore.errors import UnsupportedModelError
from memcore_adapters.learned_positions import LearnedPositionsAdapter


class OPTAdapter(LearnedPositionsAdapter):
    """Adapter for ``model_type`` ``opt``."""

    def check(self, decoder: Any) -> None:
        """Refuse layers that are left out at random: their caches would fall behind."""
        super().check(decoder)
        if decoder.layerdrop > 0:
            raise UnsupportedModelError(
                f"layerdrop={decoder.layerdrop} leaves out layers in training, and with them what they would remember; "
                "load the model with layerdrop=0.0"
            )

    def positions_needed(self, kwargs: dict[str, Any], columns: int) -> int:
        """Return the longest row of the attention mask, by which OPT counts."""
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2 and mask.numel():
            return int(mask.sum(dim=1).max())
        return columns
