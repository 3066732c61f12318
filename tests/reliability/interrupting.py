"""Lets SIGINT come through while one call is made and at no other time, so that a test knows what it may cut."""

from __future__ import annotations

import signal
from collections.abc import Callable


def block_interrupts() -> None:
    """Have SIGINT wait for the next call of :func:`was_interrupted`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def was_interrupted(call: Callable[[], object]) -> bool:
    """Make a call, and return whether KeyboardInterrupt came of it."""
    try:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            call()
        finally:
            block_interrupts()
    except KeyboardInterrupt:
        block_interrupts()
        return True
    return False
