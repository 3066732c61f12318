"""What one layer's memory is made of."""

from __future__ import annotations

import attrs

from memcore.bank import MemoryBank
from memcore.config import MemoryConfig
from memcore.embedder import ChunkEmbedder
from memcore.rotary import RotaryGeometry
from memcore.session_store import layer_namespace


@attrs.frozen(eq=False, kw_only=True)
class LayerSetup:
    """What a layer's memory is made of.

    Attributes:
        index: the layer's index in the decoder.
        remembers: whether it stores its keys and values, and chooses chunks by its queries.
        reads: whether it attends to chunks; they are its own, or those of ``config.memory_layer``.
        geometry: how it rotates keys and queries; None if positions do not enter its attention.
        config: the model's memory configuration.
        embedder: turns its keys and queries into search vectors.
        bank: where its chunks go.
    """

    index: int
    remembers: bool
    reads: bool
    geometry: RotaryGeometry | None
    config: MemoryConfig
    embedder: ChunkEmbedder
    bank: MemoryBank

    def namespace(self, row_name: str) -> str:
        """Return the bank's namespace for one row of this layer."""
        return layer_namespace(row_name, self.index)
