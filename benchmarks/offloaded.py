"""The way of reading by transformers' offloaded cache, and why it is left out where there is no GPU."""

from __future__ import annotations

from typing import Final

OFFLOADED: Final = "offloaded"

NEEDS_GPU: Final = (
    "transformers' offloaded cache moves keys and values between a GPU and the CPU and waits for CUDA streams: "
    "`make bench-gpu` measures it where there is a GPU"
)
