"""Steps that Ctrl-C must not cut in half."""

from __future__ import annotations

# The module signal looks for a member of its enumerations first, which takes ten times as long.
import _signal  # type: ignore[import-not-found]
import threading
from contextlib import AbstractContextManager
from types import FrameType, TracebackType
from typing import Any, Final

_SIGNALS: Final = (_signal.SIGINT, _signal.SIGTERM)


class _Uninterrupted(AbstractContextManager[None]):
    """Puts off what SIGINT and SIGTERM do in Python until the outermost block ends.

    Python runs signal handlers between any two instructions of the main thread, and they may raise. The second signal
    of a kind is not put off: a step that never ends can still be interrupted, and then what it does is half done.
    Other threads are never interrupted.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._handlers: dict[int, Any] = {}
        self._came: list[int] = []

    def __enter__(self) -> None:
        if threading.get_ident() != threading.main_thread().ident:
            return
        if not self._depth:
            try:
                for number in _SIGNALS:
                    handler = _signal.getsignal(number)
                    if callable(handler):
                        self._handlers[number] = handler
                        _signal.signal(number, self._put_off)
            except BaseException:
                self._restore()
                raise
        self._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if threading.get_ident() != threading.main_thread().ident:
            return
        self._depth -= 1
        if not self._depth:
            came, handlers = self._came, dict(self._handlers)
            self._restore()
            self._run([handlers[number] for number in came], came)

    def _run(self, handlers: list[Any], numbers: list[int]) -> None:
        """Call every handler, those behind one that raises as well."""
        if handlers:
            try:
                handlers[0](numbers[0], None)
            finally:
                self._run(handlers[1:], numbers[1:])

    def _put_off(self, number: int, frame: FrameType | None) -> None:
        if number in self._came:
            self._handlers[number](number, frame)
        else:
            self._came.append(number)

    def _restore(self) -> None:
        handlers, self._handlers, self._came = self._handlers, {}, []
        for number, handler in handlers.items():
            _signal.signal(number, handler)


uninterrupted: Final = _Uninterrupted()
"""The one context of this process: ``with uninterrupted: ...``, one inside of the other as need be."""
