"""Cohere 2: sliding layers rotate; the global ones, which have the memory, know no positions."""

from __future__ import annotations

from typing import Any

from memcore.rotary import RotaryGeometry
from memcore_adapters.decoder import DecoderAdapter


class Cohere2Adapter(DecoderAdapter):
    """Adapter for ``model_type`` ``cohere2``."""

    def geometry(self, decoder: Any, layer_idx: int) -> RotaryGeometry | None:
        """Return None: only sliding layers rotate."""
        return None
