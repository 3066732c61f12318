"""Families that add a learned vector for each absolute position to the embeddings, before the first layer.

Such a position is part of the hidden state and cannot be taken out of a key: retrieved keys are attended to where they
once stood, whatever ``positions`` says. And no text can be longer than the table of these vectors.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache

from memcore.errors import UnsupportedInputError
from memcore.rotary import RotaryGeometry
from memcore_adapters.decoder import DecoderAdapter


class LearnedPositionsAdapter(DecoderAdapter):
    """Base of these families."""

    def geometry(self, decoder: Any, layer_idx: int) -> RotaryGeometry | None:
        """Return None: the layers rotate nothing."""
        return None

    def longest_text(self, config: Any) -> int | None:
        """Return the length of the table."""
        length: int = config.max_position_embeddings
        return length

    def positions_needed(self, kwargs: dict[str, Any], columns: int) -> int:
        """Return how many positions a call needs that has no ``position_ids``.

        Args:
            kwargs: the call's arguments, by name.
            columns: tokens seen and new, padding included.
        """
        return columns

    def check_call(self, decoder: Any, kwargs: dict[str, Any]) -> None:
        """Refuse what would index the table beyond its end.

        Raises:
            UnsupportedInputError: naming the table's length.
        """
        source = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
        if source is None:
            return
        positions = kwargs.get("position_ids")
        if isinstance(positions, Tensor):
            needed = int(positions.max()) + 1 if positions.numel() else 0
        else:
            cache = kwargs.get("past_key_values")
            seen = cache.get_seq_length() if isinstance(cache, Cache) else 0
            needed = self.positions_needed(kwargs, seen + source.shape[1])
        length = self.longest_text(decoder.config)
        if length is not None and needed > length:
            raise UnsupportedInputError(
                f"{type(decoder).__name__} has learned vectors for {length} positions and the input needs {needed}: "
                f"such a model reads no text longer than {length} tokens, with or without memory"
            )
