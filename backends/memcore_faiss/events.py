"""What the ``faiss`` backend logs."""

from __future__ import annotations

from logging import INFO
from typing import Final

from memcore.log_event import LogEvent

OPENED: Final = LogEvent("faiss.opened", INFO, "%(description)s", ("index", "gpu"))
