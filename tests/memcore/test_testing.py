"""The conformance kit itself: it passes what is right, and each fault fails the test that is there for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from broken_backends import (
    FindsTheEvicted,
    LosesABit,
    ReusesIds,
    ScoresByTheFirstVector,
)
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from memcore.exact_backend import ExactBackend, ExactOptions
from memcore.testing import BackendMachine, PersistentBackendTests, assert_same_chunks
from memcore.testing.child import ChildProcess

FOLDER = Path(__file__).parents[1]

IN_MEMORY = [
    ("LosesABit", "test_fetch_gives_back_every_bit"),
    ("LosesABit", "test_any_pattern_of_bits_is_kept"),
    ("SwapsThereAndBack", "test_chunks_lie_where_they_are_kept_as_they_were"),
    ("ReusesIds", "test_ids_grow_and_are_never_used_again"),
    ("LeaksNamespaces", "test_odd_names_are_apart"),
    ("AliasesTensors", "test_stored_chunks_do_not_alias_what_was_given_or_fetched"),
    ("ScoresByTheFirstVector", "test_a_chunk_scores_by_its_best_vector"),
    ("ScoresByTheFirstVector", "test_scores_are_inner_products"),
    ("FindsTheEvicted", "test_what_was_evicted_is_not_found"),
    ("StoresHalfOfWhatItRefuses", "test_a_bad_embedding_among_good_ones_stores_none"),
    ("EvictsHalfOfWhatItRefuses", "test_an_unknown_id_among_known_ones_evicts_none"),
    ("EvictsHalfOfWhatItRefuses", "test_an_id_given_twice_is_evicted_once_or_refused"),
    ("KeepsShortPositions", "test_positions_and_tokens_may_be_large"),
    ("WorksAfterClose", "test_nothing_works_after_close"),
    ("CannotTakeManyWanted", "test_many_more_may_be_asked_for_than_there_are"),
    ("Unlocked", "test_threads_in_one_namespace"),
]

ON_DISK = [
    ("ForgetsOnReopening", "test_everything_is_there_after_reopening"),
    ("FlushesWhenClosedOnly", "test_a_killed_writer_leaves_one_moment_not_before_its_last_flush"),
    ("CommitsRecordsAtOnce", "test_a_killed_writer_leaves_one_moment_not_before_its_last_flush"),
    ("IgnoresReadOnly", "test_reading_only_refuses_to_write_and_changes_nothing"),
    ("RefusesButWrites", "test_reading_only_refuses_to_write_and_changes_nothing"),
    ("ReusesIdsAfterReopening", "test_ids_are_not_used_again_after_reopening"),
    ("VerifiesNothing", "test_verification_finds_a_flipped_bit"),
    ("LosesChunksWhenCompacted", "test_compacting_keeps_everything"),
    ("NeverShrinks", "test_compacting_keeps_everything"),
    ("ShowsReadersNothingNew", "test_a_reader_sees_what_the_writer_flushed"),
    ("LetsTwoWrite", "test_a_second_writer_is_refused"),
]


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, str]]:
    """Run the kit's tests named above on the broken backends, and on those without a fault: class and test that fail.

    pytest runs once, in a process of its own: inside another pytest it would import torch a second time.
    """
    chosen = [f"broken_backends.py::Test{kind}::{test}" for fault, test in IN_MEMORY for kind in (fault, "Exact")]
    chosen += [f"broken_persistent_backends.py::Test{kind}::{test}" for kind, test in ON_DISK]
    report = tmp_path_factory.mktemp("kit") / "report.xml"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--tb=line", f"--junitxml={report}"]
    run = subprocess.run([*command, *dict.fromkeys(chosen)], cwd=FOLDER, capture_output=True, text=True)
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout + run.stderr
    cases = list(ElementTree.parse(report).iter("testcase"))
    assert not any(case.find("error") is not None or case.find("skipped") is not None for case in cases), run.stdout
    return {
        (case.attrib["classname"].rpartition(".Test")[2], case.attrib["name"].partition("[")[0])
        for case in cases
        if case.find("failure") is not None
    }


@pytest.mark.parametrize(("fault", "test"), IN_MEMORY)
def test_a_fault_in_memory_is_found(failed: set[tuple[str, str]], fault: str, test: str) -> None:
    assert (fault, test) in failed
    assert ("Exact", test) not in failed


@pytest.mark.parametrize(("fault", "test"), ON_DISK)
def test_a_fault_on_disk_is_found(failed: set[tuple[str, str]], fault: str, test: str) -> None:
    assert (fault, test) in failed


@pytest.mark.parametrize("fault", [LosesABit, ReusesIds, ScoresByTheFirstVector, FindsTheEvicted])
def test_a_sequence_of_calls_finds_a_fault(fault: type[ExactBackend]) -> None:
    def start() -> BackendMachine:
        return BackendMachine(fault(ExactOptions()), exact=True, assert_same=assert_same_chunks)

    # Shrinking the sequence that was found would take most of the time.
    once = settings(max_examples=200, deadline=None, phases=[Phase.generate], derandomize=True, database=None)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(start, settings=once)  # type: ignore[arg-type]  # it takes any callable


def test_a_second_process_needs_a_class_that_can_be_found() -> None:
    class Hidden(PersistentBackendTests):
        pass

    with pytest.raises(TypeError, match=r"Hidden must be found by name in .*test_testing\.py"):
        ChildProcess(Hidden())


@pytest.mark.parametrize("method", ["open", "reopen", "damage"])
def test_what_a_test_class_must_say_is_named(method: str) -> None:
    arguments = (Path(), "a", 0) if method == "damage" else (Path(),)
    with pytest.raises(NotImplementedError, match=rf"PersistentBackendTests must say in {method}\("):
        getattr(PersistentBackendTests(), method)(*arguments)
