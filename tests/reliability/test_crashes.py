"""A writer that is killed at any moment leaves what was committed, whole, and a memory that opens."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reliability.forking import Forker, forker
from reliability.killing import POINTS

pytest.importorskip("lmdb")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")

CALLS = 40
MANY_CALLS = 200
"""Enough to come by every point."""


@pytest.fixture(scope="module")
def storing() -> Iterator[Forker]:
    with forker("reliability.storing") as started:
        yield started


def kill_once(
    forker: Forker,
    path: Path,
    chain: list[list[int]],
    how: dict[str, Any],
    delay: float = 0.0,
    *,
    certain: bool = False,
) -> int:
    """Run a writer until it is killed or, unless that is ``certain``, done; return how many of its calls are left."""
    job = forker.start("reliability.storing:run", path=str(path), chain=chain, how=how)
    if delay:
        job.next()
        time.sleep(delay)
        job.kill()
    job.end()
    assert job.status in ((-9,) if certain else (-9, 0)), f"{chain}, {how} ended with {job.status}"
    said = [tuple(each) for each in job.said]
    begun = max([0, *(number for kind, number in said if kind == "begun")])
    durable = max([0, *(number for kind, number in said if kind == "durable")])
    last = [*chain[:-1], [chain[-1][0], begun]]
    (found,) = forker.do("reliability.storing:check", path=str(path), chain=last, durable=durable)
    assert durable <= found <= begun
    return int(found)


def kill_on(forker: Forker, path: Path, seed: int, times: int) -> None:
    """Kill one writer after the other of the same memory, at steps chosen at random or at random times."""
    choice = random.Random(seed)
    chain: list[list[int]] = []
    for _ in range(times):
        delay, how = 0.0, {}
        if choice.random() < 0.4:
            delay = choice.uniform(0.0005, 0.2)
        else:
            how = {"step": int(10 ** choice.uniform(1, 4.3))}
        chain.append([choice.randrange(10**6), CALLS])
        found = kill_once(forker, path, chain, how, delay)
        chain[-1][1] = found


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random(tmp_path: Path, storing: Forker, seed: int) -> None:
    kill_on(storing, tmp_path, seed, 5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 140))
def test_killed_at_random_hundreds_of_times(tmp_path: Path, storing: Forker, seed: int) -> None:
    kill_on(storing, tmp_path, seed, 10)


def kill_at(forker: Forker, path: Path, point: str, time: int, seed: int) -> None:
    for after in (False, True):
        how = {"point": point, "after": after, "time": time}
        kill_once(forker, path / str(after), [[seed + after, MANY_CALLS]], how, certain=time == 1)


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_point(tmp_path: Path, storing: Forker, point: str) -> None:
    kill_at(storing, tmp_path, point, 1, POINTS.index(point))


@pytest.mark.slow
@pytest.mark.parametrize("time", [2, 3, 5, 8])
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_point_later_on(tmp_path: Path, storing: Forker, point: str, time: int) -> None:
    kill_at(storing, tmp_path, point, time, 100 * time + POINTS.index(point))


@pytest.mark.parametrize("seed", range(2))
def test_ctrl_c_cuts_no_call_in_half(tmp_path: Path, storing: Forker, seed: int) -> None:
    interrupt(storing, tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 130))
def test_ctrl_c_cuts_no_call_in_half_often(tmp_path: Path, storing: Forker, seed: int) -> None:
    interrupt(storing, tmp_path, seed)


def interrupt(forker: Forker, path: Path, seed: int) -> None:
    """Send SIGINT at random times, never a second one before the first had its effect."""
    choice = random.Random(seed)
    job = forker.start("reliability.storing:interrupted", path=str(path), seed=seed, count=CALLS)
    assert job.next() == "begun"
    said, times = "interrupted", 0
    while said == "interrupted":
        time.sleep(choice.uniform(0, 0.02) * (1 + times / 100))  # on a busy machine no call may be done in 20 ms
        job.kill(signal.SIGINT)
        said, times = job.next(), times + 1
    job.end()
    assert job.status in (0, -signal.SIGINT)  # the last one came when all was done
    assert "interrupted" in job.said
    (found,) = forker.do("reliability.storing:check", path=str(path), chain=[[seed, CALLS]], durable=CALLS)
    assert found == CALLS
