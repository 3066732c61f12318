"""Bringing tensors to where the model computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device, itself if it is there.

    From page-locked memory the copy to a GPU is only queued, and the CPU goes on: what the GPU does next with the
    result is queued behind it.
    """
    return tensor.to(device, non_blocking=tensor.is_pinned())


def input_device(model: Any) -> torch.device:
    """Return where a model takes its input.

    Weights that accelerate has put away, on disk say, are on no device at all; its hooks then move the input.
    """
    device: torch.device = model.device
    return torch.device("cpu") if device.type == "meta" else device
