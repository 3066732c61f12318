"""What one layer of a model attends with, in numbers: all that the size of its memory depends on."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class AttentionShape:
    """Heads of a layer, as its attention function is given them.

    Attributes:
        queries: query heads.
        heads: key/value heads.
        key_size: numbers of a key, and of a query.
        value_size: numbers of a value.
        cached: numbers of one token that the model keeps in transformers' own cache; a family with latent attention
            keeps fewer than it attends to.
    """

    queries: int
    heads: int
    key_size: int
    value_size: int
    cached: int

    @property
    def numbers(self) -> int:
        """Numbers of one token's keys and values."""
        return self.heads * (self.key_size + self.value_size)
