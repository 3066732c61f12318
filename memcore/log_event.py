"""What is logged: events with a name, a level, a sentence and fields, all of which stay the same."""

from __future__ import annotations

import logging
import re
from functools import cached_property
from typing import Final

import attrs

ROOT: Final = "memcore"
"""The logger above all of memcore's; silent unless somebody gives it, or the root logger, a handler."""

_FIELD: Final = re.compile(r"%\((\w+)\)")


@attrs.frozen(slots=False)
class LogEvent:
    """A kind of event, logged by ``memcore.AREA`` where its name begins with ``AREA.``.

    Its fields, and its name as ``event``, are attributes of the log record, so that a formatter that writes them finds
    them; nobody needs to take the sentence apart. Neither texts nor token ids are ever among them.

    Attributes:
        name: ``"area.what"``; ``docs/observability.md`` lists all.
        level: of :mod:`logging`.
        sentence: with its fields as ``%(field)s``.
        more: fields that the sentence does without.
    """

    name: str
    level: int
    sentence: str
    more: tuple[str, ...] = ()

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """The names of all fields, those of the sentence first."""
        return (*dict.fromkeys(_FIELD.findall(self.sentence)), *self.more)

    @cached_property
    def logger(self) -> logging.Logger:
        """The logger that it goes to."""
        return logging.getLogger(f"{ROOT}.{self.name.partition('.')[0]}")

    @property
    def wanted(self) -> bool:
        """Whether anybody listens, for places where collecting the fields would take time."""
        return self.logger.isEnabledFor(self.level)

    def log(self, *, traceback: bool = False, **fields: object) -> None:
        """Log that it happened.

        Args:
            traceback: whether to add that of the exception being handled.
            **fields: all of its fields, by name.
        """
        if self.wanted:
            extra = {"event": self.name, **fields}
            self.logger.log(self.level, self.sentence, fields, exc_info=traceback, stacklevel=2, extra=extra)
