from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from memcore.schedule import pieces

lengths = st.integers(1, 5_000)


@given(tokens=lengths, seen=st.integers(0, 3_000), room=lengths, segment=st.integers(1, 700), query=st.integers(1, 64))
def test_pieces_cover_the_input_in_order_and_fit(tokens: int, seen: int, room: int, segment: int, query: int) -> None:
    spans = list(pieces(tokens, seen, room=room, segment=segment, query_tokens=query))
    assert spans[0][0] == 0
    assert spans[-1][1] == tokens
    assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(spans))
    assert all(begin < end for begin, end in spans)
    for begin, end in spans:
        assert end - begin <= segment or seen + end <= room


@given(tokens=lengths, room=lengths)
def test_what_fits_passes_whole(tokens: int, room: int) -> None:
    spans = list(pieces(tokens, 0, room=room, segment=4, query_tokens=4))
    assert (spans == [(0, tokens)]) == (tokens <= room or tokens == 1)


def test_the_end_is_cut_finest() -> None:
    assert list(pieces(100, 0, room=40, segment=30, query_tokens=16)) == [
        (0, 40), (40, 70), (70, 84), (84, 92), (92, 96), (96, 98), (98, 99), (99, 100),
    ]  # fmt: skip
