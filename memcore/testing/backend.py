"""What every memory backend must do. A backend's test class inherits this and says how to open one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from memcore.testing.bad_input import BadInputTests
from memcore.testing.machine import BackendMachine
from memcore.testing.namespaces import NamespaceTests
from memcore.testing.searching import SearchingTests
from memcore.testing.storing import StoringTests
from memcore.testing.threads import ThreadTests

if TYPE_CHECKING:
    from pathlib import Path


class BackendTests(StoringTests, SearchingTests, NamespaceTests, BadInputTests, ThreadTests):
    """Tests that a backend inherits: give ``open`` and, unless it is an in-memory backend, ``raw_payload``."""

    def test_any_sequence_of_calls_agrees_with_a_dictionary(self, tmp_path: Path) -> None:
        runs = iter(range(10**6))

        def start() -> RuleBasedStateMachine:
            folder = tmp_path / str(next(runs))
            folder.mkdir()
            return BackendMachine(self.open(folder), exact=self.exact, assert_same=self.assert_same)

        run_state_machine_as_test(
            start,  # type: ignore[arg-type]  # it takes any callable
            settings=settings(
                max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
