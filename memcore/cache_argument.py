"""What a forward calls the cache it takes: transformers 5.24 renamed ``past_key_values`` to ``cache``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final

OLD: Final = "past_key_values"
NEW: Final = "cache"


def cache_argument(function: Callable[..., Any]) -> str:
    """Return the name of the parameter by which a forward, or ``generate()``, takes a cache."""
    return NEW if NEW in inspect.signature(function).parameters else OLD
