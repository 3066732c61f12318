"""Bringing what a backend returns to where a layer computes."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device, itself if it is there.

    From page-locked memory the copy to a GPU is only queued, and the CPU goes on: what the GPU does next with the
    result is queued behind it.
    """
    return tensor.to(device, non_blocking=tensor.is_pinned())
