"""The window loses no token, keeps no token twice, and never holds more than it may."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memcore import MemoryConfig, UnsupportedInputError
from memcore.window import Columns, LocalWindow

CONFIG = MemoryConfig(window=16, chunk_size=4, sinks=3, segment=8, query_tokens=5, retrieve_every=4)


def feed(window: LocalWindow, live: torch.Tensor, first: int, *, decode: bool = False) -> list[list[int]]:
    """Feed columns whose token ids count up from ``first`` in each row; return the ids that left as chunks, by row."""
    batch, tokens = live.shape
    ids = torch.arange(first, first + tokens).expand(batch, tokens)
    left: list[list[int]] = [[] for _ in range(batch)]
    departure = window.make_room(live)
    if departure is not None:
        for row, leaving in enumerate(departure.rows):
            begin = leaving.start + leaving.sinks
            left[row] = window.columns.token_ids[row, begin : begin + leaving.chunks * CONFIG.chunk_size].tolist()
        window.take(departure)
    window.append(Columns(live=live, positions=ids, token_ids=ids), decode=decode, spilled=False)
    window.finish()
    return left


@given(st.data())
def test_every_real_token_is_a_sink_or_in_a_chunk_or_in_the_window(data: st.DataObject) -> None:
    batch = data.draw(st.integers(1, 3))
    window = LocalWindow(CONFIG, batch)
    fed: list[list[int]] = [[] for _ in range(batch)]
    chunked: list[list[int]] = [[] for _ in range(batch)]
    first = 0
    for _ in range(data.draw(st.integers(1, 14))):
        longest = CONFIG.segment_length if window.seen >= window.room else min(8, window.room - window.seen)
        tokens = data.draw(st.integers(1, longest))
        live = torch.tensor(data.draw(st.lists(st.lists(st.booleans(), min_size=tokens, max_size=tokens),
                                               min_size=batch, max_size=batch)))  # fmt: skip
        left = feed(window, live, first)
        for row in range(batch):
            fed[row] += [first + i for i in range(tokens) if live[row, i]]
            chunked[row] += left[row]
        first += tokens
    for row in range(batch):
        sinks = window.sinks.token_ids[row][window.sinks.live[row]].tolist()
        local = window.columns.token_ids[row][window.columns.live[row]].tolist()
        assert sinks + chunked[row] + local == fed[row]
        assert len(chunked[row]) % CONFIG.chunk_size == 0
        assert len(local) <= (CONFIG.window_length if sinks else window.room)
        recent = window.recent.token_ids[row][window.recent.live[row]].tolist()
        assert recent == fed[row][-len(recent) :] if recent else not fed[row]
        assert len(recent) == min(CONFIG.query_tokens, len(fed[row]))


def test_rows_alone_and_in_a_padded_batch_give_up_the_same_chunks() -> None:
    lengths = [40, 26]
    alone = []
    for n in lengths:
        window = LocalWindow(CONFIG, 1)
        left: list[int] = []
        for begin in range(0, n, 2):
            left += feed(window, torch.ones(1, min(2, n - begin), dtype=torch.bool), begin)[0]
        alone.append(left)
    window = LocalWindow(CONFIG, 2)
    together: list[list[int]] = [[], []]
    for begin in range(0, 40, 2):
        column = torch.arange(begin, begin + 2)
        live = torch.stack([column >= 0, column >= 14])
        for row, left in enumerate(feed(window, live, begin)):
            together[row] += left
    assert together[0] == alone[0]
    assert [each - 14 for each in together[1]] == alone[1]


def test_retrieval_is_due_for_every_piece_of_an_input_and_every_few_generated_tokens() -> None:
    window = LocalWindow(CONFIG, 1)
    due = []
    for length, decode in [(19, False), (8, False), (1, False), *[(1, True)] * 9]:
        feed(window, torch.ones(1, length, dtype=torch.bool), window.seen, decode=decode)
        due.append(window.retrieve_now)
    assert due[:3] == [False, True, True]
    assert due[3:] == [False, False, False, True, False, False, False, True, False]


def test_taking_back_what_left_is_refused() -> None:
    window = LocalWindow(CONFIG, 1)
    for begin in range(0, 40, 4):
        feed(window, torch.ones(1, 4, dtype=torch.bool), begin)
    window.crop(3)
    assert window.seen == 37
    assert window.columns.token_ids[0, -1] == 36
    with pytest.raises(UnsupportedInputError, match="only the last"):
        window.crop(17)
