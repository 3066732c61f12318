"""What lies between the entries of a file that LMDB has copied: bytes of others, deleted long ago. Here they go."""

from __future__ import annotations

from pathlib import Path

from memcore_lmdb.file_offsets import write_at
from memcore_lmdb.page_format import BRANCH, HEADER, LEAF, METAS
from memcore_lmdb.pages import Snapshot


def wipe_gaps(path: Path, file: int) -> None:
    """Write zeros wherever a page in use holds nothing; do nothing if a page is not as it should be.

    LMDB takes memory for new pages without clearing it, and copies pages as they are, so that the room that is left on
    them may hold anything that was ever written.

    Args:
        path: of a compacted copy, which has no free pages.
        file: the same, open for writing.
    """
    gaps: list[tuple[int, int]] = []
    with Snapshot(path) as snapshot:
        size = snapshot.meta.page_size
        of_values = bytearray(snapshot.meta.last_page + 1)
        for _, place in snapshot.entries():
            if place.pages:
                first = place.at // size
                of_values[first : first + place.pages] = b"\1" * place.pages
                gaps.append((place.at + place.size, (first + place.pages) * size))
        if snapshot.problems:
            return
        end_of_file = snapshot.size
    with path.open("rb") as pages:
        for number in range(METAS, len(of_values)):
            if not of_values[number]:
                pages.seek(number * size)
                own, _, flags, lower, upper = HEADER.unpack(pages.read(HEADER.size))
                if own == number and flags in (BRANCH, LEAF):
                    gaps.append((number * size + lower, number * size + upper))
    for begin, end in gaps:
        end = min(end, end_of_file)
        if begin < end:
            write_at(file, bytes(end - begin), begin)
