"""Records that banks and sessions keep in a backend: uses of chunks, states of sessions, messages."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

from fuzz.target import Target, refused
from memcore.bank import MemoryBank
from memcore.eviction_policies import FifoEviction
from memcore.exact_backend import ExactBackend, ExactOptions
from memcore.session import tokens_read
from memcore.session_store import SessionInfo, SessionStore
from memcore.testing import make_chunks
from memcore.transcript import parse_messages
from memcore.usage_record import pack, unpack
from memcore.view import Shelf

_NAME = "novel"


class Records(Target):
    """Reads bytes as each kind of record."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._bank = MemoryBank(ExactBackend(ExactOptions()), FifoEviction(), capacity=None)
        self._bank.store("a", make_chunks(5))
        self._sessions = SessionStore(self._bank)

    def seeds(self) -> list[bytes]:
        """Return what is written of five chunks and of a session."""
        info = SessionInfo(name=_NAME, tokens=3, next_ids={"0": 5}, config={"window": 8, "layers": [0]})
        self._sessions.save(info, {"tokens": torch.zeros(1, 3, dtype=torch.int32), "window.counts": torch.zeros(4)})
        messages = b'[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]'
        (view,) = self._bank._namespaces.views()
        uses = pack(view, 7)
        records = self._bank.records
        return [uses, *(records.read(name) or b"" for name in records.names()), messages]

    def read(self, data: bytes) -> None:
        """Read bytes as uses, as a session, as its state and as messages."""
        shelf = Shelf(self._bank.backend, "a")

        def uses() -> None:
            view, _, forgotten = unpack(data, self._bank.backend.ids("a"), shelf)
            assert len(view) == len(view.known()) == len(view.backend_ids)
            assert not torch.isin(forgotten, view.backend_ids).any()
            view.add(torch.tensor([9]), 1)

        refused(uses)
        records = self._bank.records
        for kind in ("session/", "session-state/"):
            for name in records.names():
                records.drop(name)
            records.write(kind + _NAME, data)
            refused(lambda: self._sessions.infos())
            refused(lambda: self._sessions.load(_NAME))
            refused(lambda: tokens_read(self._sessions, _NAME))
        records.write("session/" + _NAME, data)
        refused(lambda: tokens_read(self._sessions, _NAME))
        with suppress(ValueError):  # which sessions make an error of memcore's
            parse_messages(data)
