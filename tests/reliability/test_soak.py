"""A long mix of calls: contents and uses stay right, and the process takes no more as time goes by."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reliability.levelness import FIELDS, Bounds, Sample, measure, problems, without_what_was_imported
from reliability.opening import INSTALLED
from reliability.soaking import POLICIES, Soak

SHORT = Bounds(memory=16 << 20, disk=2 << 20)
"""Wider than what ``make soak`` allows: a third of a short run is too little to warm up."""

CALLS = {"exact": 240, "faiss": 120, "hnswlib": 64, "lmdb": 240}
SAMPLES = 8


@pytest.mark.skipif(os.name != "posix", reason="handles are counted in another way there")
@pytest.mark.parametrize("name", INSTALLED)
def test_mixed_calls_are_right_and_take_no_more_as_time_goes_by(name: str, tmp_path: Path) -> None:
    soak = Soak(name, tmp_path / "memory", seed=1)
    samples = []
    with without_what_was_imported():
        for calls in range(1, CALLS[name] + 1):
            soak.step()
            if calls % (CALLS[name] // SAMPLES) == 0:
                samples.append(measure(calls, soak.disk_bytes))
    soak.check()
    soak.close()
    assert soak.evicted > 0
    assert problems(samples, SHORT) == []


@pytest.mark.parametrize("policy", sorted([policy for policy in POLICIES if policy != "memlong"]))
def test_what_is_forgotten_is_what_the_policy_chooses_by_uses_counted_elsewhere(policy: str, tmp_path: Path) -> None:
    soak = Soak("exact", tmp_path, seed=2, policy=policy)
    for _ in range(100):
        soak.step()
    soak.check()
    assert soak.evicted > 0


@pytest.mark.parametrize("field", FIELDS)
def test_what_grows_is_told(field: str) -> None:
    level = dict.fromkeys(FIELDS, 10 << 20)
    grown = [Sample(calls=calls, **{**level, field: level[field] + (calls << 20)}) for calls in range(30)]
    assert problems([Sample(calls=calls, **level) for calls in range(30)], SHORT) == []
    assert all(problem.startswith(field) for problem in problems(grown, SHORT))
    assert problems(grown, Bounds(memory=8 << 20, disk=8 << 20))
