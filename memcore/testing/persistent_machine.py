"""The stateful test of persistent backends: reopening between any two calls must change nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from memcore.testing.machine import BackendMachine

if TYPE_CHECKING:
    from pathlib import Path

    from memcore.backend import PersistentBackend
    from memcore.testing.case import PersistentCase


class PersistentMachine(BackendMachine):
    """Does the same things to a persistent backend and to dictionaries of chunks and records, and compares.

    Args:
        case: opens the backend and says what is the same.
        path: an empty folder.
    """

    backend: PersistentBackend

    def __init__(self, case: PersistentCase, path: Path) -> None:
        super().__init__(case.open(path), exact=case.exact, assert_same=case.assert_same)
        self.case = case
        self.path = path
        self.records: dict[str, bytes] = {}

    @rule()
    def flush(self) -> None:
        self.backend.flush()

    @rule()
    def reopen(self) -> None:
        self.backend.close()
        self.backend = self.case.reopen(self.path)

    @rule()
    def look_without_writing(self) -> None:
        self.backend.close()
        with self.case.reopen(self.path, read_only=True) as backend:
            assert backend.verify() == []
            self.compare(backend)
        self.backend = self.case.reopen(self.path)

    @rule()
    def compact(self) -> None:
        self.backend.compact()

    @rule(name=st.sampled_from("abc"), value=st.binary(max_size=3))
    def write_record(self, name: str, value: bytes) -> None:
        self.backend.write_record(name, value)
        self.records[name] = value

    @rule(name=st.sampled_from("abc"))
    def drop_record(self, name: str) -> None:
        self.backend.drop_record(name)
        self.records.pop(name, None)

    @invariant()
    def records_agree(self) -> None:
        names = self.backend.record_names()
        assert names == sorted(self.records)
        assert {name: self.backend.read_record(name) for name in names} == self.records
