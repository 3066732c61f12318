"""Requests to the model, served one after the other in a thread of their own, each until its client has gone."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from memcore.errors import MemcoreError
from memcore.serving.errors import RequestError

T = TypeVar("T")

Work = Callable[[Callable[[T], None], threading.Event], None]
"""What is done for a request: called with what to tell each result to, and an event that says that nobody listens."""


class StoppedError(MemcoreError):
    """Nobody waits for the result any more."""


class OneAtATime:
    """A queue before one thread.

    A model generates for one request at a time, and a trace watches one generation.

    Args:
        waiting: requests that may wait; more are refused.
    """

    def __init__(self, waiting: int = 16) -> None:
        self._waiting: Final = waiting
        self._inside: dict[Future[None], threading.Event] = {}
        self._ending = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="memcore-serving")

    async def run(self, work: Work[T]) -> AsyncGenerator[T]:
        """Do something when it is its turn, and yield what it tells, as it tells it.

        If the generator is closed before its end, the work is told to stop, or not begun.

        Raises:
            RequestError: too many are waiting, or :meth:`stop` was called.
            MemcoreError: what the work raised.
        """
        inside = len(self._inside)
        if inside > self._waiting:
            raise RequestError(
                f"{inside} requests are served or wait already; try again later", status=503, code="busy"
            )
        if self._ending:
            raise _ending()
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[T | Future[None]] = asyncio.Queue()
        stopped = threading.Event()

        def tell(result: T | Future[None]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed, and nobody listens
                loop.call_soon_threadsafe(told.put_nowait, result)

        def leave(done: Future[None]) -> None:
            def left() -> None:
                del self._inside[done]
                told.put_nowait(done)

            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(left)

        future = self._thread.submit(work, tell, stopped)
        self._inside[future] = stopped
        future.add_done_callback(leave)
        try:
            while not isinstance(result := await told.get(), Future):
                yield result
            if result.cancelled():
                raise _ending()
            with contextlib.suppress(StoppedError):
                result.result()
        finally:
            stopped.set()
            future.cancel()

    def stop(self) -> None:
        """Tell the work under way to stop, give up what waits, and begin nothing more."""
        self._ending = True
        for future, stopped in list(self._inside.items()):
            stopped.set()
            future.cancel()

    def close(self) -> None:
        """Stop, and wait for what is under way."""
        self.stop()
        self._thread.shutdown(cancel_futures=True)


def _ending() -> RequestError:
    return RequestError("the server is about to end", status=503, code="ending")
