"""transformers' cache that keeps on the CPU what a GPU has no room for."""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor
from transformers import DynamicCache

from memcore.evaluation.ways import PIECE

OFFLOADED: Final = "offloaded"

NEEDS_GPU: Final = (
    "transformers' offloaded cache moves keys and values between a GPU and the CPU and waits for CUDA streams: "
    "`make bench-gpu` measures it where there is a GPU"
)


def prefill_offloaded(model: Any, ids: Tensor) -> Any:
    """Read ``[1, T]`` token ids in pieces and return the cache, which is on the CPU but for the layer under way."""
    cache = DynamicCache(config=model.config, offloading=True)
    for part in ids.split(PIECE, dim=1):
        model(input_ids=part, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache
