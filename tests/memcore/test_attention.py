"""Retrieval-causal attention against a plain float64 reference that knows nothing of caches, masks or rotations by
difference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import reference_attention, reference_rotation

from memcore.attention import additive, place_at, place_before, side_by_side, visibility
from memcore.rotary import RotaryGeometry, rotate, unrotate

GEOMETRIES = {
    "halves": RotaryGeometry(inv_freq=1.0 / 10_000 ** (torch.arange(8) / 8)),
    "interleaved": RotaryGeometry(inv_freq=1.0 / 10_000 ** (torch.arange(8) / 8), interleaved=True),
    "partial and scaled": RotaryGeometry(inv_freq=1.0 / 500 ** (torch.arange(4) / 4), attention_scaling=1.3),
    "last and scaled": RotaryGeometry(
        inv_freq=1.0 / 500 ** (torch.arange(4) / 4), attention_scaling=1.3, interleaved=True, offset=8
    ),
    "in between": RotaryGeometry(inv_freq=1.0 / 500 ** (torch.arange(4) / 4), offset=3),
}
geometries = pytest.mark.parametrize("geometry", list(GEOMETRIES.values()), ids=list(GEOMETRIES))


@geometries
def test_unrotate_undoes_what_the_model_did(geometry: RotaryGeometry) -> None:
    torch.manual_seed(0)
    plain, positions = torch.randn(2, 3, 50, 16), torch.randint(0, 100_000, (50,))
    rotated = reference_rotation(plain, positions, geometry).float()
    torch.testing.assert_close(unrotate(rotated, positions, geometry), plain, atol=1e-5, rtol=0)


@geometries
def test_rotating_by_the_difference_moves_a_key(geometry: RotaryGeometry) -> None:
    torch.manual_seed(1)
    plain, old, new = torch.randn(3, 50, 16), torch.randint(0, 100_000, (50,)), torch.randint(0, 2_000, (50,))
    moved = rotate(reference_rotation(plain, old, geometry).float(), new - old, geometry)
    torch.testing.assert_close(moved, reference_rotation(plain, new, geometry).float(), atol=1e-5, rtol=0)


def test_rotating_bfloat16_costs_only_its_own_rounding() -> None:
    torch.manual_seed(2)
    x, geometry = torch.randn(1, 1, 64, 16).bfloat16(), GEOMETRIES["halves"]
    moved = rotate(x, torch.tensor(-70_000), geometry)
    exact = reference_rotation(x, torch.full((64,), -70_000), geometry)
    assert moved.dtype == torch.bfloat16
    assert torch.equal(moved, exact.float().bfloat16()) or (moved.double() - exact).abs().max() < 2**-7


@geometries
def test_all_keys_can_go_to_one_position(geometry: RotaryGeometry) -> None:
    torch.manual_seed(4)
    plain, starts = torch.randn(3, 2, 5, 16), torch.tensor([40, 990, 7_000])
    keys = reference_rotation(plain, starts[:, None, None] + torch.arange(5), geometry).float()
    expected = reference_rotation(plain, torch.full((5,), 7_999), geometry).float()
    torch.testing.assert_close(place_at(keys, starts, 7_999, geometry), expected, atol=1e-5, rtol=0)


@geometries
def test_chunks_end_right_before_the_window(geometry: RotaryGeometry) -> None:
    torch.manual_seed(3)
    plain = torch.randn(3, 2, 5, 16)  # three chunks of five tokens, two heads
    starts = torch.tensor([40, 990, 7_000])
    old = starts[:, None, None] + torch.arange(5)
    keys = reference_rotation(plain, old, geometry).float()
    placed = side_by_side(place_before(keys, starts, 8_000, geometry))
    expected = reference_rotation(side_by_side(plain), torch.arange(7_985, 8_000), geometry).float()
    torch.testing.assert_close(placed, expected, atol=1e-5, rtol=0)


@given(st.data())
def test_extended_attention_equals_the_reference(data: st.DataObject) -> None:
    batch, past, new = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 9)), data.draw(st.integers(1, 6))
    seed, live = data.draw(st.integers(0, 999)), data.draw(st.booleans())
    torch.manual_seed(seed)
    past_live = torch.rand(batch, past) < 0.7 if live else None
    new_live = torch.rand(batch, new) < 0.7 if live else None
    query = torch.randn(batch, 4, new, 16)
    keys, values = torch.randn(batch, 2, past + new, 16), torch.randn(batch, 2, past + new, 12)
    mask = visibility(past_live, new_live, past, new)
    expected_mask = torch.zeros(batch, 1, new, past + new, dtype=torch.bool)
    for b in range(batch):
        for t in range(new):
            for k in range(past + new):
                if k < past:
                    visible = past_live is None or bool(past_live[b, k])
                else:
                    visible = k - past == t or (k - past < t and (new_live is None or bool(new_live[b, k - past])))
                expected_mask[b, 0, t, k] = visible
    all_keys, all_values = (each.repeat_interleave(2, dim=1) for each in (keys, values))
    got = torch.nn.functional.scaled_dot_product_attention(query, all_keys, all_values, attn_mask=mask, scale=0.3)
    expected = reference_attention(query, keys, values, expected_mask, 0.3)
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=0)
    added = additive(mask, torch.float32)
    weights = query @ all_keys.transpose(2, 3) * 0.3 + (0.0 if added is None else added)
    eager = torch.softmax(weights, dim=-1) @ all_values
    torch.testing.assert_close(eager.double(), expected, atol=1e-5, rtol=0)
    assert math.isfinite(float(eager.sum()))
