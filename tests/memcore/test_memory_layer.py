"""A layer of the cache fed with random queries and keys: what it hands to attention, against float64 over all of them.

The reference keeps every key as it was before rotation and asks the layer only which chunks it recalled.
"""

from __future__ import annotations

from typing import Literal, get_args

import attrs
import pytest
import torch
from reference import reference_attention, reference_rotation
from torch import Tensor

from memcore import MemoryConfig
from memcore.bank import MemoryBank
from memcore.embedders import SubBlockMeans
from memcore.eviction_policies import FifoEviction
from memcore.exact_backend import ExactBackend, ExactOptions
from memcore.layer_setup import LayerSetup
from memcore.memory_layer import MemoryLayer, Recalled
from memcore.options import structure_options
from memcore.rotary import RotaryGeometry
from memcore.schedule import pieces
from memcore.window import Columns, LocalWindow

GEOMETRY = RotaryGeometry(inv_freq=1.0 / 10_000 ** (torch.arange(8) / 8))
HEADS, KV_HEADS, DIM, TOKENS = 4, 2, 16, 130


def run(config: MemoryConfig, *, remembers: bool = True) -> list[tuple[int, Tensor, list[int]]]:
    """Feed random tokens; for each piece return its begin, the output's error and the recalled starts."""
    torch.manual_seed(0)
    query = torch.randn(1, HEADS, TOKENS, DIM) * 2
    key, value = torch.randn(1, KV_HEADS, TOKENS, DIM), torch.randn(1, KV_HEADS, TOKENS, DIM)
    positions = torch.arange(TOKENS)
    turned_q, turned_k = (reference_rotation(x, positions, GEOMETRY).float() for x in (query, key))
    bank = MemoryBank(ExactBackend(ExactOptions()), FifoEviction(), capacity=None)
    embedder = SubBlockMeans(structure_options(SubBlockMeans.Options, {"block": 4}))
    recalled: dict[int, list[Recalled | None]] = {}
    setup = LayerSetup(index=0, remembers=remembers, reads=remembers, geometry=GEOMETRY, config=config,
                       embedder=embedder, bank=bank)  # fmt: skip
    layer, window, out = MemoryLayer(setup, recalled), LocalWindow(config, 1), []
    layer.window = window
    cut = pieces(110, 0, room=window.room, segment=config.segment_length, question_tokens=config.question_tokens)
    for begin, end in [*cut, *((i, i + 1) for i in range(110, TOKENS))]:
        live = torch.ones(1, end - begin, dtype=torch.bool)
        window.under_way = True
        departure = window.make_room(live)
        if departure is not None:
            layer.spill(departure, ["row"])
            window.take(departure)
        here = positions[None, begin:end]
        new = Columns(live=live, positions=here, token_ids=here)
        window.append(new, decode=begin >= 110, spilled=bool(departure and departure.spills))
        q = turned_q[:, :, begin:end]
        k, v = layer.update(turned_k[:, :, begin:end], value[:, :, begin:end])
        if window.active:
            k, v, mask = layer.attend(q, k, v, scaling=0.25, row_names=["row"])
        else:
            layer.note(q)
            mask = torch.ones(end - begin, end, dtype=torch.bool).tril(begin)[None, None]
        k, v = (x.repeat_interleave(HEADS // KV_HEADS, dim=1) for x in (k, v))
        output = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.25)
        chunks = recalled.get(0, [None])[0] if window.active else None
        starts = [] if chunks is None else chunks.starts.tolist()
        expected = _expected(config, window, query, key, value, begin, end, starts)
        out.append((begin, output.double() - expected, starts))
        window.finish()
    return out


def _expected(
    config: MemoryConfig, window: LocalWindow, query: Tensor, key: Tensor, value: Tensor, begin: int, end: int,
    starts: list[int],
) -> Tensor:  # fmt: skip
    local = int(window.columns.token_ids[0, 0])
    where: dict[int, int] = {t: t for t in range(local, end)}  # token: position it is attended at
    if window.active:
        remembered = [start + i for start in starts for i in range(config.chunk_size)]
        span = min(1, len(remembered)) if config.positions == "zero" else len(remembered)
        places = {
            "original": [*range(config.sinks), *remembered],
            "window": [local - config.sinks - span + i for i in range(config.sinks + span)],
            "zero": [*(local - config.sinks - span + i for i in range(config.sinks)), *[local - 1] * len(remembered)],
        }
        where |= dict(zip([*range(config.sinks), *remembered], places[config.positions], strict=True))
    order = torch.tensor(sorted(where))
    keys = reference_rotation(key[:, :, order], torch.tensor([where[int(t)] for t in order]), GEOMETRY)
    queries = reference_rotation(query[:, :, begin:end], torch.arange(begin, end), GEOMETRY)
    visible = (order[None, :] <= torch.arange(begin, end)[:, None])[None, None]
    return reference_attention(queries, keys, value[:, :, order], visible, 0.25)


CONFIG = MemoryConfig(window=32, chunk_size=8, sinks=4, top_k=2, query_tokens=6, question_tokens=5, retrieve_every=3)
Places = Literal["window", "zero", "original"]


@pytest.mark.parametrize("positions", get_args(Places))
@pytest.mark.parametrize("sinks", [0, 4])
@pytest.mark.parametrize("rerank", [0, 2])
def test_each_piece_attends_to_sinks_recalled_chunks_and_window_in_one_softmax(
    positions: Places, sinks: int, rerank: int
) -> None:
    steps = run(attrs.evolve(CONFIG, positions=positions, sinks=sinks, rerank=rerank))
    assert any(len(starts) == CONFIG.chunks for _, _, starts in steps)
    for begin, error, _ in steps:
        assert error.abs().max() < 1e-4, begin


def test_a_layer_without_memory_keeps_sinks_and_window() -> None:
    steps = run(CONFIG, remembers=False)
    assert all(not starts for _, _, starts in steps)
    for begin, error, _ in steps:
        assert error.abs().max() < 1e-4, begin


def test_recalled_chunks_change_with_what_is_asked_for() -> None:
    steps = run(CONFIG)
    assert len({tuple(starts) for _, _, starts in steps}) > 3
