from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from memcore.compression import BY_TOKEN, compress, decompress
from memcore.errors import BackendError
from memcore.testing import DTYPES, make_chunks

UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Largest relative error of rounding to a dtype."""


def runs(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the range and the largest magnitude of each number's run, in float64."""
    x = x.double()
    span = x.amax(dim, keepdim=True) - x.amin(dim, keepdim=True)
    return span.expand_as(x), x.abs().amax(dim, keepdim=True).expand_as(x)


def assert_within_bound(got: Tensor, want: Tensor, dim: int) -> None:
    span, largest = runs(want, dim)
    rounding = UNIT[want.dtype] * (got.double().abs() + largest)
    bound = span / 508 + 2.0**-21 * largest + rounding + 1.2e-38
    if want.dtype == torch.float16:
        bound = bound + 2.0**-24  # its smallest step
    assert bool(((got.double() - want.double()).abs() <= bound).all())


@given(data=st.data(), dtype=st.sampled_from(DTYPES), width=st.integers(1, 9), channels=st.integers(1, 6))
def test_the_error_is_within_the_bound(data: st.DataObject, dtype: torch.dtype, width: int, channels: int) -> None:
    largest = torch.finfo(dtype).max
    numbers = st.floats(-largest, largest, width=32)
    count = width * channels
    drawn = torch.tensor(data.draw(st.lists(numbers, min_size=2 * count, max_size=2 * count)), dtype=torch.float32)
    keys, values = drawn.to(dtype).view(2, 1, 1, width, channels)
    lengths = torch.tensor([width])
    back = decompress(compress(keys, values, lengths), lengths, dtype)
    assert back[0].dtype == back[1].dtype == dtype
    assert_within_bound(back[0], keys, dim=2)
    assert_within_bound(back[1], values, dim=3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_the_error_of_ordinary_numbers_is_half_a_step(dtype: torch.dtype, offset: float) -> None:
    chunks = make_chunks(6, width=32, key_size=16, value_size=8, dtype=dtype)
    keys, values = chunks.keys + offset, chunks.values + offset
    lengths = torch.full((6,), 32)
    back = decompress(compress(keys, values, lengths), lengths, dtype)
    assert_within_bound(back[0], keys, dim=2)
    assert_within_bound(back[1], values, dim=3)
    span, _ = runs(keys, 2)
    if dtype == torch.float32:  # and no scale is wasted: some error comes near the bound
        assert float(((back[0] - keys).abs() / span).max()) > 0.9 / 508


@given(seed=st.integers(0, 2**16), garbage=st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e30, 0.0]))
def test_padding_counts_for_nothing(seed: int, garbage: float) -> None:
    chunks = make_chunks(5, width=6, seed=seed)
    padding = (torch.arange(6) >= chunks.lengths[:, None])[:, None, :, None]
    spoilt = compress(
        chunks.keys.masked_fill(padding, garbage), chunks.values.masked_fill(padding, garbage), chunks.lengths
    )
    clean = compress(chunks.keys.masked_fill(padding, 0), chunks.values.masked_fill(padding, 0), chunks.lengths)
    for name, tensor in clean.items():
        assert torch.equal(tensor, spoilt[name])
    for tensor in decompress(clean, chunks.lengths, torch.float32):
        assert not bool(tensor.masked_select(padding).any())


def test_a_chunk_alone_is_compressed_as_among_others() -> None:
    chunks = make_chunks(4, width=6, seed=2)
    together = compress(chunks.keys, chunks.values, chunks.lengths)
    for place, length in enumerate(chunks.lengths.tolist()):
        own = slice(place, place + 1)
        alone = compress(chunks.keys[own, :, :length], chunks.values[own, :, :length], chunks.lengths[own])
        for name, tensor in alone.items():
            among = together[name][own]
            assert torch.equal(tensor, among[:, :, :length] if name in BY_TOKEN else among)


def test_runs_are_channels_of_keys_and_tokens_of_values() -> None:
    keys, values = torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2)
    keys[..., 0], keys[0, 0, :, 1] = 5.0, torch.tensor([-1e6, 0.0, 1e6])
    values[0, 0, 0], values[0, 0, 1] = 5.0, torch.tensor([-1e6, 1e6])
    lengths = torch.tensor([3])
    back = decompress(compress(keys, values, lengths), lengths, torch.float32)
    torch.testing.assert_close(back[0], keys)
    torch.testing.assert_close(back[1], values)
    assert torch.equal(back[0][..., 0], keys[..., 0])
    assert torch.equal(back[1][0, 0, 0], values[0, 0, 0])


def test_equal_numbers_come_back_as_they_were() -> None:
    keys = torch.full((2, 2, 3, 4), 0.1, dtype=torch.bfloat16)
    lengths = torch.tensor([3, 2])
    back = decompress(compress(keys, keys, lengths), lengths, torch.bfloat16)
    for got in back:
        assert torch.equal(got[0], keys[0])
        assert torch.equal(got[1, :, :2], keys[1, :, :2])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["keys", "values"])
def test_what_is_not_finite_is_refused(name: str, bad: float) -> None:
    chunks = make_chunks(3, width=4)
    tensors = {"keys": chunks.keys, "values": chunks.values}
    tensors[name][1, 0, 0, 1] = bad
    with pytest.raises(BackendError, match=f"finite {name}"):
        compress(**tensors, lengths=chunks.lengths)


def test_what_float32_cannot_hold_is_refused() -> None:
    huge = torch.full((1, 1, 1, 1), 1e300, dtype=torch.float64)
    with pytest.raises(BackendError, match="float32"):
        compress(huge, huge, torch.tensor([1]))


def test_nothing_becomes_nothing() -> None:
    chunks = make_chunks(0, key_size=4, value_size=3)
    back = decompress(compress(chunks.keys, chunks.values, chunks.lengths), chunks.lengths, torch.float16)
    assert [list(tensor.shape) for tensor in back] == [[0, 2, 3, 4], [0, 2, 3, 3]]


def test_it_takes_about_half_of_half_precision() -> None:
    keys = torch.randn(2, 4, 64, 128).to(torch.bfloat16)
    parts = compress(keys, keys, torch.tensor([64, 64]))
    assert sum(tensor.nbytes for tensor in parts.values()) < 0.55 * 2 * keys.nbytes


def test_no_gradient_is_kept() -> None:
    keys = torch.randn(1, 1, 2, 2, requires_grad=True)
    parts = compress(keys, keys, torch.tensor([2]))
    assert not any(
        tensor.requires_grad for tensor in (*parts.values(), *decompress(parts, torch.tensor([2]), keys.dtype))
    )
