"""What every persistent memory backend must do, beside what every backend must."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from memcore.testing.backend import BackendTests
from memcore.testing.persistence import PersistenceTests
from memcore.testing.persistent_machine import PersistentMachine
from memcore.testing.processes import ProcessTests

if TYPE_CHECKING:
    from pathlib import Path


class PersistentBackendTests(PersistenceTests, ProcessTests, BackendTests):
    """Tests that a persistent backend inherits: give ``open``, ``reopen``, ``raw_payload`` and ``damage``."""

    def test_any_sequence_of_calls_and_reopenings_agrees_with_a_dictionary(self, tmp_path: Path) -> None:
        runs = iter(range(10**6))

        def start() -> RuleBasedStateMachine:
            folder = tmp_path / str(next(runs))
            folder.mkdir()
            return PersistentMachine(self, folder)

        run_state_machine_as_test(
            start,  # type: ignore[arg-type]  # it takes any callable
            settings=settings(
                max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
