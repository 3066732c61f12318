from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from memcore.schedule import pieces

lengths = st.integers(1, 5_000)


@given(
    tokens=lengths, seen=st.integers(0, 3_000), room=lengths, segment=st.integers(1, 700), question=st.integers(0, 64)
)
def test_pieces_cover_the_input_in_order_and_fit(
    tokens: int, seen: int, room: int, segment: int, question: int
) -> None:
    spans = list(pieces(tokens, seen, room=room, segment=segment, question_tokens=question))
    assert spans[0][0] == 0
    assert spans[-1][1] == tokens
    assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(spans))
    assert all(begin < end for begin, end in spans)
    for begin, end in spans:
        assert end - begin <= segment or seen + end <= room


@given(tokens=lengths, room=lengths)
def test_what_fits_passes_whole(tokens: int, room: int) -> None:
    spans = list(pieces(tokens, 0, room=room, segment=4, question_tokens=4))
    assert (spans == [(0, tokens)]) == (tokens <= room or tokens == 1)


def test_the_end_goes_token_by_token() -> None:
    assert list(pieces(100, 0, room=40, segment=30, question_tokens=3)) == [
        (0, 40), (40, 70), (70, 97), (97, 98), (98, 99), (99, 100),
    ]  # fmt: skip
    assert list(pieces(100, 0, room=40, segment=30, question_tokens=0)) == [(0, 40), (40, 70), (70, 100)]
    assert list(pieces(3, 40, room=40, segment=30, question_tokens=32)) == [(0, 1), (1, 2), (2, 3)]
    assert list(pieces(50, 0, room=40, segment=30, question_tokens=32))[:2] == [(0, 40), (40, 41)]
