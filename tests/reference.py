"""Rotation and attention written out plainly in float64, to judge the fast ones by."""

from __future__ import annotations

import torch
from torch import Tensor

from memcore.rotary import RotaryGeometry


def reference_rotation(x: Tensor, positions: Tensor, geometry: RotaryGeometry) -> Tensor:
    """RoPE as complex multiplication, in float64: ``[..., T, D]``."""
    count = geometry.inv_freq.numel()
    before, turned, rest = x.double().tensor_split((geometry.offset, geometry.offset + 2 * count), dim=-1)
    if geometry.interleaved:
        pairs = torch.view_as_complex(turned.unflatten(-1, (count, 2)).contiguous())
    else:
        pairs = torch.complex(turned[..., :count], turned[..., count:])
    angle = positions.double()[..., None] * geometry.inv_freq.double()
    pairs = pairs * torch.polar(torch.full_like(angle, geometry.attention_scaling), angle)
    parts = torch.view_as_real(pairs).flatten(-2) if geometry.interleaved else torch.cat((pairs.real, pairs.imag), -1)
    return torch.cat((before, parts, rest), dim=-1)


def reference_attention(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor, scaling: float) -> Tensor:
    """One softmax over the visible keys, one query and head at a time, in float64: ``[B, Hq, T, Dv]``."""
    batch, heads, tokens, _ = query.shape
    group = heads // keys.shape[1]
    out = torch.zeros(batch, heads, tokens, values.shape[-1], dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for t in range(tokens):
                seen = visible[b % visible.shape[0], 0, t]
                logits = keys[b, h // group].double()[seen] @ query[b, h, t].double() * scaling
                out[b, h, t] = torch.softmax(logits, dim=0) @ values[b, h // group].double()[seen]
    return out


def close(logits: torch.Tensor, expected: torch.Tensor) -> None:
    """Assert that full recall gave the logits of full attention, but for the order of sums.

    The largest difference measured is 1.6e-5 in float32 (gpt_oss), and in bfloat16 1.6 roundings of the largest logit
    (qwen2 under sdpa).
    """
    assert logits.dtype == expected.dtype
    tolerance = 1e-4
    if logits.dtype != torch.float32:
        tolerance = 4 * torch.finfo(logits.dtype).eps * float(expected.abs().max())
    torch.testing.assert_close(logits, expected, atol=tolerance, rtol=0)
