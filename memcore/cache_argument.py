"""What a forward calls the cache it takes: transformers 5.24 renamed ``past_key_values`` to ``cache``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Final

OLD: Final = "past_key_values"
NEW: Final = "cache"


def cache_argument(function: Callable[..., Any]) -> str:
    """Return the name by which a forward, or ``generate()``, takes a cache.

    One that takes any arguments, as ``generate()`` and peft's forward do, passes them on to a model of transformers.
    """
    takes = inspect.signature(function).parameters
    return next((name for name in (NEW, OLD) if name in takes), None) or _newest()


@functools.cache
def _newest() -> str:
    """Return the name that this release of transformers uses itself."""
    from transformers import GenerationMixin

    return NEW if NEW in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters else OLD
