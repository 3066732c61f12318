"""Retrieval-causal attention: one softmax over [sinks | retrieved | local window | new tokens].

Memory and the past of the window are fully visible, the new tokens see each other causally. These are pure functions
that extend keys, values and mask; the softmax itself stays with the model's own attention function.
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from memcore.rotary import RotaryGeometry, rotate


def visibility(past_live: Tensor | None, new_live: Tensor | None, past: int, new: int) -> Tensor | None:
    """Say which key each new token may attend to.

    Args:
        past_live: ``[B, past]`` bool, False where a column holds nothing; None if all are live.
        new_live: ``[B, new]`` bool, False for padding; None if all are live.
        past: columns before the new tokens: sinks, retrieved and window.
        new: new tokens.

    Returns:
        ``[B or 1, 1, new, past + new]`` bool, or None if everything is visible. A padding token sees itself, so that
        no row of the softmax is empty.
    """
    if new == 1 and past_live is None and new_live is None:
        return None
    device = next((live.device for live in (past_live, new_live) if live is not None), None)
    mask = torch.ones(new, past + new, dtype=torch.bool, device=device).tril(diagonal=past)[None, None]
    if past_live is None and new_live is None:
        return mask
    batch = (past_live if past_live is not None else new_live).shape[0]  # type: ignore[union-attr]
    if past_live is None:
        past_live = torch.ones(batch, past, dtype=torch.bool, device=device)
    if new_live is None:
        new_live = torch.ones(batch, new, dtype=torch.bool, device=device)
    live = torch.cat((past_live, new_live), dim=1)
    itself = torch.zeros(new, past + new, dtype=torch.bool, device=device)
    itself.diagonal(offset=past).fill_(True)
    return (mask & live[:, None, None, :]) | itself


@overload
def additive(mask: None, dtype: torch.dtype) -> None: ...
@overload
def additive(mask: Tensor, dtype: torch.dtype) -> Tensor: ...


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Turn a bool mask into what eager attention adds to the logits: 0 where visible, the lowest number elsewhere.

    A mask of numbers is that already, and is returned as it is.
    """
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def place_before(keys: Tensor, starts: Tensor, end: int, geometry: RotaryGeometry) -> Tensor:
    """Turn chunks of rotated keys so that they lie one after the other, the last ending right before ``end``.

    Each chunk turns as a whole, by the difference of its old and new start, so gaps inside it stay.

    Args:
        keys: ``[N, H, C, D]`` as the model rotated them, in document order.
        starts: ``[N]`` int64 position of each chunk's first token.
        end: position of the first token after the block.
        geometry: the layer's rotation.

    Returns:
        ``[N, H, C, D]``, a new tensor in the dtype of ``keys``.
    """
    chunks, _, length, _ = keys.shape
    targets = end - length * torch.arange(chunks, 0, -1)
    shift = targets - starts.cpu()
    return rotate(keys, shift[:, None, None], geometry)


def place_at(keys: Tensor, starts: Tensor, position: int, geometry: RotaryGeometry) -> Tensor:
    """Turn chunks of rotated keys so that every one of them lies at one position.

    Args:
        keys: ``[N, H, C, D]`` as the model rotated them, tokens of a chunk at consecutive positions.
        starts: ``[N]`` int64 position of each chunk's first token.
        position: where all of them go.
        geometry: the layer's rotation.

    Returns:
        ``[N, H, C, D]``, a new tensor in the dtype of ``keys``.
    """
    shift = position - (starts.cpu()[:, None] + torch.arange(keys.shape[2]))
    return rotate(keys, shift[:, None, :], geometry)


def side_by_side(chunks: Tensor) -> Tensor:
    """Join chunks along the token axis: ``[N, H, C, D]`` to ``[H, N * C, D]``."""
    return chunks.transpose(0, 1).flatten(1, 2)
