"""Bytes changed by chance, without looking at what comes of it."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from random import Random
from typing import Final

_NUMBERS: Final = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    (1 << 62),
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
)
_WORDS: Final = (
    b"null",
    b"-1",
    b"[]",
    b"{}",
    b'""',
    b"1e999",
    b"NaN",
    b"true",
    b"../",
    b"\0",
    b"9" * 30,
    b"[" * 1000,
    b"torch.load",
    b"/etc/passwd",
    b"-9223372036854775808",
    b"&a [*a]",
    b"!!python/object:os.system x",
)


def mutated(data: bytes, choice: Random, others: Sequence[bytes]) -> bytes:
    """Return bytes with one to four changes.

    Args:
        data: to change.
        choice: what decides.
        others: to take parts from.
    """
    changed = bytearray(data)
    for _ in range(choice.randrange(1, 5)):
        choice.choice((_bit, _number, _word, _copy, _cut, _splice, _value))(changed, choice, others)
    return bytes(changed)


def _place(data: bytearray, choice: Random) -> int:
    return choice.randrange(len(data)) if data else 0


def _bit(data: bytearray, choice: Random, _: Sequence[bytes]) -> None:
    if data:
        data[_place(data, choice)] ^= 1 << choice.randrange(8)


def _number(data: bytearray, choice: Random, _: Sequence[bytes]) -> None:
    at, size = _place(data, choice), choice.choice((1, 2, 4, 8))
    if choice.random() < 0.5:
        at -= at % size  # where numbers lie
    data[at : at + size] = struct.pack("<Q", choice.choice(_NUMBERS))[:size][: max(0, len(data) - at)]


def _word(data: bytearray, choice: Random, _: Sequence[bytes]) -> None:
    at = _place(data, choice)
    data[at : at + choice.choice((0, 1, 4))] = choice.choice(_WORDS)


def _copy(data: bytearray, choice: Random, _: Sequence[bytes]) -> None:
    begin, at, size = _place(data, choice), _place(data, choice), choice.choice((1, 8, 16, 32, 4096))
    data[at : at + size] = data[begin : begin + size]


def _cut(data: bytearray, choice: Random, _: Sequence[bytes]) -> None:
    at = _place(data, choice)
    del data[at : at + choice.choice((1, 4, 8, 4096, len(data)))]


def _splice(data: bytearray, choice: Random, others: Sequence[bytes]) -> None:
    other = choice.choice(others)
    at = choice.randrange(len(other)) if other else 0
    data[at:] = other[at:]


def _value(data: bytearray, choice: Random, _: Sequence[bytes]) -> None:
    """Change a number or a word of a text."""
    found = list(re.finditer(rb"-?\d+|\"[^\"]*\"", bytes(data[:4096])))
    if found:
        begin, end = choice.choice(found).span()
        data[begin:end] = choice.choice((*_WORDS, str(choice.choice(_NUMBERS)).encode()))
