"""Families that rotate neighbouring dimensions instead of the two halves of a head."""

from __future__ import annotations

from typing import Any

import attrs

from memcore.rotary import RotaryGeometry
from memcore_adapters.decoder import DecoderAdapter


class InterleavedAdapter(DecoderAdapter):
    """Adapter for ``model_type`` ``cohere``."""

    def geometry(self, decoder: Any, layer_idx: int) -> RotaryGeometry | None:
        """Return the rotation, of neighbours."""
        geometry = super().geometry(decoder, layer_idx)
        return None if geometry is None else attrs.evolve(geometry, interleaved=True)
