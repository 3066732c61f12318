"""How a long input is cut into the pieces that pass through the model one after the other."""

from __future__ import annotations

from collections.abc import Iterator


def pieces(tokens: int, seen: int, *, room: int, segment: int, question_tokens: int) -> Iterator[tuple[int, int]]:
    """Yield ``(begin, end)`` of each piece of an input of ``tokens`` tokens.

    What fits beside the ``seen`` tokens passes whole. Else the first piece fills the room, segments follow, and the
    last ``question_tokens`` go one at a time. A piece is served by queries from before it, and only a single token
    also asks for itself: where the question stands, every token must find its own chunks.

    Args:
        tokens: length of the input; an empty one is one empty piece.
        seen: tokens (columns) already in the cache.
        room: columns that fit before anything must leave the window.
        segment: longest piece after that.
        question_tokens: tokens at the end that go one at a time.
    """
    begin = max(0, min(tokens, room - seen))
    if begin or not tokens:
        yield 0, begin
    question = max(begin, tokens - question_tokens)
    for end in (*range(begin + segment, question, segment), question, *range(question + 1, tokens + 1)):
        if begin < end:
            yield begin, end
        begin = end
