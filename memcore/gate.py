"""The gate of MemLong: how much each head trusts what was retrieved, as a number that training sets.

The paper weighs memory by ``g = sigmoid(p)`` and the local context by ``1 - g``, with a parameter ``p`` per head that
starts at 0. Weighing the terms of the softmax so is the same as adding ``log(g / (1 - g)) = p`` to the logits of the
retrieved keys, and that is what happens here: with ``p = 0`` the logits are the model's own, to the bit.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor

from memcore.attention import additive

GATE: Final = "memory_gate"
"""Name of the parameter of an attention module, ``[Hq]``, in the model's state dict."""


def gate_bias(gate: Tensor, memory: Tensor, keys: int) -> Tensor:
    """Return what the gate adds to the logits.

    Args:
        gate: ``[Hq]``, one parameter per query head.
        memory: ``[B, P]`` bool, which of the first ``P`` keys were retrieved.
        keys: keys in all.

    Returns:
        ``[B, Hq, 1, keys]`` in the dtype of ``gate``, on its device.
    """
    bias = gate.new_zeros(memory.shape[0], 1, 1, keys)
    bias[:, 0, 0, : memory.shape[1]] = memory.to(gate)
    return bias * gate[None, :, None, None]


def gated(mask: Tensor | None, bias: Tensor) -> Tensor:
    """Return the mask that adds ``bias`` to the logits where ``mask``, bool or additive, lets a token see."""
    return bias if mask is None else bias + additive(mask, bias.dtype)
