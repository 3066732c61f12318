"""All that memcore itself logs. Backends have events of their own."""

from __future__ import annotations

from logging import DEBUG, ERROR, INFO, WARNING
from typing import Final

from memcore.log_event import LogEvent

MEMORY_OPENED: Final = LogEvent(
    "memory.opened",
    INFO,
    "a memory is open in backend %(backend)r",
    ("window", "layers", "capacity", "embedder", "eviction", "read_only"),
)
MEMORY_CLOSED: Final = LogEvent("memory.closed", INFO, "the memory in backend %(backend)r is closed")
MEMORY_CONFIGURED: Final = LogEvent(
    "memory.configured", INFO, "the memory configuration that the model was saved with is used: %(config)s"
)

SESSION_BEGUN: Final = LogEvent("session.begun", INFO, "session %(session)r begins", ("model",))
SESSION_OPENED: Final = LogEvent("session.opened", INFO, "session %(session)r is open, %(tokens)d tokens read")
SESSION_CHECKPOINTED: Final = LogEvent(
    "session.checkpointed", INFO, "session %(session)r: %(tokens)d tokens are durable", ("seconds",)
)
SESSION_ROLLED_BACK: Final = LogEvent(
    "session.rolled_back", INFO, "session %(session)r is as of its last checkpoint again, %(tokens)d tokens"
)
SESSION_REPAIRED: Final = LogEvent(
    "session.repaired", WARNING, "session %(session)r: a crash came between its two records; one is written anew"
)
SESSION_COPIED: Final = LogEvent("session.copied", INFO, "session %(source)r was copied to %(session)r", ("tokens",))
SESSION_DROPPED: Final = LogEvent("session.dropped", INFO, "session %(session)r was dropped", ("tokens",))
SESSION_COPY_UNDONE: Final = LogEvent(
    "session.copy_undone", WARNING, "what an unfinished copy left of session %(session)r was dropped"
)

BANK_STORED: Final = LogEvent(
    "bank.stored", DEBUG, "%(chunks)d chunks were stored in %(namespace)s", ("count", "seconds")
)
BANK_RETRIEVED: Final = LogEvent(
    "bank.retrieved", DEBUG, "%(chunks)d chunks of %(count)d came back from %(namespace)s", ("searched", "seconds")
)
BANK_EVICTED: Final = LogEvent(
    "bank.evicted", DEBUG, "%(chunks)d chunks left %(namespace)s, chosen by %(chosen_by)s", ("count", "seconds")
)

INDEX_BUILT: Final = LogEvent(
    "index.built", INFO, "a search index of %(vectors)d vectors was built: %(reason)s", ("seconds",)
)
INDEX_EXTENDED: Final = LogEvent(
    "index.extended", DEBUG, "%(added)d vectors came to a search index, which has %(vectors)d", ("seconds",)
)
INDEX_BYPASSED: Final = LogEvent(
    "index.bypassed", DEBUG, "%(queries)d queries were compared with all vectors: %(reason)s"
)
INDEX_FAILED: Final = LogEvent(
    "index.failed", WARNING, "the search index could not remove %(vectors)d vectors and is built anew"
)

PLUGIN_PROBLEM: Final = LogEvent("plugin.problem", WARNING, "plugin %(plugin)r: %(problem)s")
PLUGIN_MISSING: Final = LogEvent(
    "plugin.missing", WARNING, "%(variable)s names a plugin that is not installed: %(plugin)r"
)
PLUGIN_FAILED: Final = LogEvent(
    "plugin.failed", ERROR, "plugin %(plugin)r failed in %(hook)s; later failures are not logged"
)
PLUGIN_OVERRULED: Final = LogEvent(
    "plugin.overruled", ERROR, "plugin %(plugin)r: %(hook)s %(problem)s; later failures are not logged"
)
