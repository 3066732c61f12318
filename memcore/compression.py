"""Keys and values in one byte a number: what backends may store in place of the tensors themselves.

A run of numbers ``x`` becomes ``q``, int8 from -127 to 127, with a float32 offset and scale of its own::

    offset = (max(x) + min(x)) / 2      scale = (max(x) - min(x)) / 2 / 127
    q = round((x - offset) / scale)     x is about offset + scale * q

A run of keys is one channel of one head over a chunk's tokens, because some channels of a key are many times larger
than others; a run of values is one token in one head over its channels. What lies in the padding of short chunks
belongs to no run.

The error of a number is at most half a scale, ``(max(x) - min(x)) / 508``, and beside it the rounding to the dtype of
what is returned and at most ``2**-21 * max(|x|)`` of float32 arithmetic. A run of equal numbers comes back as it was.
Scales are at least the smallest normal float32, about 1.2e-38.
"""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor

from memcore.errors import BackendError

Compression = Literal["none", "int8"]
"""How a backend keeps keys and values: bit for bit, or as this module says."""

BY_TOKEN: Final = ("keys", "values", "value_scales", "value_offsets")
"""The tensors of a compressed payload with one entry a token, in dimension 2; the others are as long for any chunk."""

_LEVELS: Final = 127


def compress(keys: Tensor, values: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """Return keys and values in one byte a number.

    Args:
        keys: ``[N, H, C, D]``, any floating dtype.
        values: ``[N, H, C, Dv]``, same dtype.
        lengths: ``[N]`` int64, tokens in each chunk, from 1 to ``C``. What is behind them is not looked at.

    Returns:
        On the device of ``keys``: ``keys`` int8 ``[N, H, C, D]`` with ``key_scales`` and ``key_offsets`` float32
        ``[N, H, D]``, ``values`` int8 ``[N, H, C, Dv]`` with ``value_scales`` and ``value_offsets`` float32
        ``[N, H, C]``; all 0 in the padding.

    Raises:
        BackendError: a key or value is NaN, infinite or beyond float32, so that no scale fits it.
    """
    inside = _inside(lengths.to(keys.device), keys.shape[2])
    small_keys, key_scales, key_offsets = _quantise("keys", keys, inside, dim=2)
    small_values, value_scales, value_offsets = _quantise("values", values, inside, dim=3)
    return {
        "keys": small_keys,
        "key_scales": key_scales,
        "key_offsets": key_offsets,
        "values": small_values,
        "value_scales": value_scales,
        "value_offsets": value_offsets,
    }


def decompress(payload: dict[str, Tensor], lengths: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return keys and values from what :func:`compress` made of them.

    Args:
        payload: as :func:`compress` returns it. Further entries are ignored.
        lengths: ``[N]`` int64, tokens in each chunk.
        dtype: that of the keys and values which were compressed.

    Returns:
        ``[N, H, C, D]`` and ``[N, H, C, Dv]``, ``dtype``, on the payload's device, 0 in the padding.
    """
    inside = _inside(lengths.to(payload["keys"].device), payload["keys"].shape[2])
    keys = _restore(payload["keys"], payload["key_scales"], payload["key_offsets"], inside, dtype, dim=2)
    values = _restore(payload["values"], payload["value_scales"], payload["value_offsets"], inside, dtype, dim=3)
    return keys, values


def _inside(lengths: Tensor, width: int) -> Tensor | None:
    """Return which tokens belong to a chunk, ``[N, 1, C, 1]`` bool, or None if all do."""
    inside = torch.arange(width, device=lengths.device) < lengths[:, None]
    return None if bool(inside.all()) else inside[:, None, :, None]


def _quantise(name: str, x: Tensor, inside: Tensor | None, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``q``, scales and offsets of ``x`` ``[N, H, C, D]``, whose runs lie along ``dim``."""
    if not x.numel():
        # No chunks may also be chunks of no tokens, which have no extremes.
        none = x.new_zeros([size for at, size in enumerate(x.shape) if at != dim], dtype=torch.float32)
        return torch.zeros_like(x, dtype=torch.int8), none, none.clone()
    with torch.no_grad():
        x = x.to(torch.float32)
        low, high = x, x
        if inside is not None:
            low, high = x.masked_fill(~inside, torch.inf), x.masked_fill(~inside, -torch.inf)
        low, high = low.amin(dim, keepdim=True), high.amax(dim, keepdim=True)
        if inside is not None and dim == 3:  # the runs of tokens that are padding
            low, high = low.masked_fill(~inside, 0), high.masked_fill(~inside, 0)
        # Both are NaN where any number of the run is.
        if not bool((low.isfinite() & high.isfinite()).all()):
            raise BackendError(
                f"int8 compression takes finite {name} within float32's range, got NaN, infinity or larger; "
                'compression="none" keeps any'
            )
        # Halves first: the difference of two large numbers may be infinite.
        offsets = high / 2 + low / 2
        scales = ((high / 2 - low / 2) / _LEVELS).clamp_(min=torch.finfo(torch.float32).tiny)
        q = (x - offsets).div_(scales).round_().clamp_(-_LEVELS, _LEVELS)
        if inside is not None:
            q = q.masked_fill_(~inside, 0)
        return q.to(torch.int8), scales.squeeze(dim), offsets.squeeze(dim)


def _restore(q: Tensor, scales: Tensor, offsets: Tensor, inside: Tensor | None, dtype: torch.dtype, dim: int) -> Tensor:
    with torch.no_grad():
        x = torch.addcmul(offsets.unsqueeze(dim), q, scales.unsqueeze(dim))
        if dtype.itemsize >= x.itemsize:
            # The largest number of a run may have been the largest there is, and be rounded up.
            x.clamp_(-torch.finfo(x.dtype).max, torch.finfo(x.dtype).max)
        if inside is not None:
            x.masked_fill_(~inside, 0)
        return x.to(dtype)
