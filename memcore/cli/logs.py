"""What the command line shows of memcore's log: on the standard error stream, as text or as lines of JSON."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Final

from memcore.cli.output import errors, notes
from memcore.log_event import ROOT

LEVEL: Final = "MEMCORE_LOG_LEVEL"
JSON: Final = "MEMCORE_LOG_JSON"


class Level(StrEnum):
    """What to show: this and what is worse."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def number(self) -> int:
        """That of :mod:`logging`."""
        return logging.getLevelNamesMapping()[self.name]


@contextmanager
def shown_log(level: Level, *, as_json: bool) -> Iterator[None]:
    """Show the log while in this context.

    Args:
        level: from which on.
        as_json: whether to show every record as an object of JSON in a line, with all its fields.
    """
    logger, handler = logging.getLogger(ROOT), _ConsoleHandler()
    handler.setFormatter(_json_formatter() if as_json else _TextFormatter(timed=level in (Level.DEBUG, Level.INFO)))
    before = logger.level
    logger.setLevel(level.number)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _ConsoleHandler(logging.Handler):
    """Prints above progress bars, which are on the console for notes; where that is quiet there are none."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            (errors if notes.quiet else notes).print(self.format(record), soft_wrap=True)
        except Exception:
            self.handleError(record)


class _TextFormatter(logging.Formatter):
    def __init__(self, *, timed: bool) -> None:
        super().__init__("%(asctime)s %(level)-7s %(message)s" if timed else "%(level)s: %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        record.level = record.levelname.lower()
        return super().format(record)


def _json_formatter() -> logging.Formatter:
    from pythonjsonlogger.json import JsonFormatter

    return JsonFormatter(
        "%(levelname)s %(name)s %(message)s", rename_fields={"levelname": "level", "name": "logger"}, timestamp="time"
    )
