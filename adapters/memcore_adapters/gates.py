"""Putting the gate's parameters into the attention modules of a model, and taking them out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch

from memcore.gate import GATE
from memcore_adapters.attention_modules import attention_modules


def attach_gates(decoder: Any, layers: Iterable[int]) -> None:
    """Give the attention of these layers a gate, ``[Hq]`` zeros, on the layer's device and in its dtype.

    Where its weights are quantised the dtype is another weight's; where they are put away the gate stays on the CPU.
    """
    modules = attention_modules(decoder)
    for index in layers:
        weights = itertools.chain(modules[index].parameters(), decoder.parameters())
        like = next(weight for weight in weights if weight.is_floating_point())
        device = "cpu" if like.is_meta else like.device
        gate = torch.zeros(decoder.config.num_attention_heads, dtype=like.dtype, device=device)
        modules[index].register_parameter(GATE, torch.nn.Parameter(gate))


def detach_gates(decoder: Any) -> None:
    """Take all gates away."""
    for module in decoder.modules():
        if GATE in module._parameters:
            del module._parameters[GATE]
