"""The environments that are open in this process, and what becomes of them when it forks."""

from __future__ import annotations

import os
from threading import RLock
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from memcore_lmdb.environment import Environment

environments: Final[dict[str, Environment]] = {}
"""By the real path of their folder. Change it with ``registering`` held."""

registering: Final = RLock()


class _ForkGuard:
    """Lets a process fork between transactions only: LMDB's reader table still counts those of the parent."""

    def __init__(self) -> None:
        self._held: list[Environment] = []

    def before(self) -> None:
        while True:
            with registering:
                found = list(environments.values())
            for environment in found:
                environment.lock.acquire()
            registering.acquire()
            if found == list(environments.values()):
                self._held = found  # only now, as another thread may be about to fork as well
                return
            registering.release()  # one came or went meanwhile
            for environment in found:
                environment.lock.release()

    def in_parent(self) -> None:
        held = self._held  # which whoever forks next changes as soon as it can
        registering.release()
        for environment in held:
            environment.lock.release()

    def in_child(self) -> None:
        for environment in self._held:
            environment.abandon()
        environments.clear()
        self.in_parent()

    def watch(self) -> Self:
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self.before, after_in_parent=self.in_parent, after_in_child=self.in_child)
        return self


_fork_guard: Final = _ForkGuard().watch()
