"""Amounts as people write them: ``128k`` tokens, ``24GiB``.

``k``, ``M`` and ``G`` are powers of 1,000, as in the documentation; ``Ki``, ``Mi`` and ``Gi`` are powers of 1,024.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

from memcore.errors import ConfigError
from memcore.options import describe

_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_AMOUNT: Final = re.compile(r"([0-9][0-9_,]*(?:\.[0-9]+)?)\s*(?:([kmgt])(i?))?(b?)", flags=re.IGNORECASE)


def parse_tokens(text: str) -> int:
    """Return a number of tokens: ``4096``, ``128k`` (128,000), ``1M`` (1,000,000), ``4Ki`` (4,096).

    Raises:
        ConfigError: it is none.
    """
    found = _AMOUNT.fullmatch(text.strip())
    amount = None if found is None or found[4] else _scaled(found)
    if not amount:
        raise ConfigError(
            f"a number of tokens is written 4096, 128k (128,000), 1M (1,000,000) or 4Ki (4,096); got {describe(text)}"
        )
    return amount


def parse_bytes(text: str) -> int:
    """Return a number of bytes: ``24GiB`` (of 1,024 MiB), ``24GB`` (of 1,000 MB), ``512MiB``.

    Raises:
        ConfigError: it is none, or without a unit.
    """
    found = _AMOUNT.fullmatch(text.strip())
    amount = None if found is None or not found[4] else _scaled(found)
    if not amount:
        raise ConfigError(
            f"a number of bytes is written 24GiB (of 1,024 MiB) or 24GB (of 1,000 MB); got {describe(text)}"
        )
    return amount


def _scaled(found: re.Match[str]) -> int | None:
    """Return the whole number that was written, None if it is not whole."""
    number, unit, binary, _ = found.groups()
    base = 1024 if binary else 1000
    amount = Decimal(re.sub("[_,]", "", number)) * base ** _POWERS[(unit or "").lower()]
    return int(amount) if amount == int(amount) else None


def show_bytes(size: float) -> str:
    """Return bytes in the unit of 1,024 that suits them: ``"15.0 GiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.2f} TiB"


def show_tokens(tokens: int) -> str:
    """Return a number of tokens as :func:`parse_tokens` takes it: ``"128k"``, ``"1M"``, ``"1,234"``."""
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if tokens >= size and tokens % (size // 10) == 0:
            return f"{tokens / size:g}{unit}"
    return f"{tokens:,}"


def show_operations(count: float) -> str:
    """Return a number of operations in thousand millions: ``"16.06 G"``."""
    return f"{count / 1e9:,.2f} G" if count < 1e12 else f"{count / 1e12:,.2f} T"
