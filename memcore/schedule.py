"""How a long input is cut into the pieces that pass through the model one after the other."""

from __future__ import annotations

from collections.abc import Iterator


def pieces(tokens: int, seen: int, *, room: int, segment: int, query_tokens: int) -> Iterator[tuple[int, int]]:
    """Yield ``(begin, end)`` of each piece of an input of ``tokens`` tokens.

    What fits beside the ``seen`` tokens passes whole. Else the first piece fills the room, segments follow, and the
    last ``query_tokens`` go in halves down to a single token: the tokens of a piece are served by queries from before
    it (only a single token also asks for itself), so the end of a prompt, where the question stands, is cut finest.

    Args:
        tokens: length of the input, at least 1.
        seen: tokens (columns) already in the cache.
        room: columns that fit before anything must leave the window.
        segment: longest piece after that.
        query_tokens: tokens at the end that are cut into halves.
    """
    if seen + tokens <= room:
        yield 0, tokens
        return
    begin = 0
    if seen < room:
        begin = room - seen
        yield 0, begin
    while tokens - begin > 1:
        left = tokens - begin
        step = min(segment, left - query_tokens if left > query_tokens else left // 2)
        yield begin, begin + step
        begin += step
    if begin < tokens:
        yield begin, tokens
