"""What the ``lmdb`` backend logs."""

from __future__ import annotations

from logging import DEBUG, INFO, WARNING
from typing import Final

from memcore.log_event import LogEvent

OPENED: Final = LogEvent("lmdb.opened", INFO, "%(path)s is open", ("bytes", "read_only"))
COMMITTED: Final = LogEvent("lmdb.committed", DEBUG, "about %(bytes)d bytes were committed to %(path)s", ("seconds",))
GROWN: Final = LogEvent("lmdb.grown", INFO, "%(path)s may grow to %(map_bytes)d bytes now", ("map_bytes_before",))
COMPACTED: Final = LogEvent(
    "lmdb.compacted",
    INFO,
    "%(path)s was compacted, from %(bytes_before)d to %(bytes)d bytes",
    ("seconds",),
)
FOLLOWED: Final = LogEvent("lmdb.followed", INFO, "another process has compacted: %(path)s is read from now on")
REOPENED: Final = LogEvent("lmdb.reopened", WARNING, "%(path)s was opened again after an error: %(error)s")
READERS_CLEARED: Final = LogEvent(
    "lmdb.readers_cleared", INFO, "places of %(readers)d readers that were killed are free again in %(path)s"
)
