"""Rotary position geometry: moving keys and queries from one position to another without the model."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor


@attrs.frozen(eq=False, kw_only=True)
class RotaryGeometry:
    """How one layer turns positions into rotations (RoPE, arXiv 2104.09864).

    Pair ``i`` of the ``2 * F`` dimensions from ``offset`` on turns by ``position * inv_freq[i]`` radians, and the rest
    stay. Dimensions pair up as halves (``i`` with ``i + F``), or as neighbours (``2i`` with ``2i + 1``) when
    ``interleaved``.

    Attributes:
        inv_freq: ``[F]`` float32, radians per position.
        attention_scaling: factor the model applies to cos and sin (1 but for YaRN and LongRoPE).
        interleaved: which dimensions form a pair.
        offset: dimensions before those that turn.
    """

    inv_freq: Tensor
    attention_scaling: float = 1.0
    interleaved: bool = False
    offset: int = 0

    @property
    def turning(self) -> slice:
        """The dimensions that turn."""
        return slice(self.offset, self.offset + 2 * self.inv_freq.numel())


def same_rotation(one: RotaryGeometry | None, other: RotaryGeometry | None) -> bool:
    """Say whether two layers, None for one without rotation, turn the same position by the same angles."""
    if one is None or other is None:
        return one is other
    rest = attrs.evolve(one, inv_freq=other.inv_freq)
    return torch.equal(one.inv_freq, other.inv_freq) and attrs.astuple(rest)[1:] == attrs.astuple(other)[1:]


def rotate(x: Tensor, shift: Tensor, geometry: RotaryGeometry, dtype: torch.dtype | None = None) -> Tensor:
    """Turn already rotated (or never rotated) vectors by ``shift`` positions.

    Angles are computed in float64 and applied in float32, so that bfloat16 vectors lose nothing but their own rounding.
    No gradient goes through it.

    Args:
        x: ``[..., T, D]`` any floating dtype.
        shift: integer positions that broadcast to ``[..., T]``; negative turns back.
        geometry: the layer's rotation.
        dtype: of the result; None for that of ``x``.

    Returns:
        ``[..., T, D]``.
    """
    x, dtype = x.detach(), dtype or x.dtype
    inv_freq = geometry.inv_freq.to(device=x.device, dtype=torch.float64)
    angle = shift.to(x.device, torch.float64).unsqueeze(-1) * inv_freq  # [..., T, F]
    cos, sin = angle.cos().float(), angle.sin().float()
    # Turned in place in one copy: getting memory for every product takes as long as the product.
    turned = x[..., geometry.turning].to(torch.float32, copy=True)
    if geometry.interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
    else:
        half = turned.shape[-1] // 2
        a, b = turned[..., :half], turned[..., half:]
    across = a * sin
    a.mul_(cos).addcmul_(b, sin, value=-1)
    b.mul_(cos).add_(across)
    out = turned.to(dtype)
    if out.shape[-1] == x.shape[-1]:
        return out
    before, after = x[..., : geometry.offset], x[..., geometry.turning.stop :]
    return torch.cat((before.to(dtype), out, after.to(dtype)), dim=-1)


def unrotate(x: Tensor, positions: Tensor, geometry: RotaryGeometry) -> Tensor:
    """Undo the model's rotation and scaling: what the projection gave before RoPE.

    Args:
        x: ``[..., T, D]`` rotated by the model.
        positions: positions it was rotated to, broadcasting to ``[..., T]``.
        geometry: the layer's rotation.

    Returns:
        ``[..., T, D]`` float32.
    """
    plain = rotate(x, -positions, geometry, torch.float32)
    if geometry.attention_scaling != 1.0:
        plain[..., geometry.turning] /= geometry.attention_scaling
    return plain
