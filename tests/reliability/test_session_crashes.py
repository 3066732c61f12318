"""Sessions outlive kills and Ctrl-C: they are as of a checkpoint, and what is done again ends the same, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reliability.forking import Forker, forker

pytest.importorskip("lmdb")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")


@pytest.fixture(scope="module")
def reading() -> Iterator[Forker]:
    with forker("reliability.reading") as started:
        yield started


@pytest.fixture(scope="module")
def record(reading: Forker, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("record")
    reading.do("reliability.reading:record", path=str(folder / "memory"), target=str(folder / "states.json"))
    return str(folder / "states.json")


def kill(reading: Forker, path: Path, record: str, seed: int) -> bool:
    """Kill the process at a random step, and return whether it was killed before the end."""
    choice = random.Random(seed)
    arguments = {"write_buffer": choice.choice((0, 1 << 28)), "die_after": choice.randrange(100, 60_000)}
    job = reading.start("reliability.reading:run", path=str(path), **arguments)
    done = max([0, *job.end()])
    assert job.status in (-9, 0), f"{arguments} ended with {job.status}"
    assert reading.do("reliability.reading:check", path=str(path), record=record, done=done) == ["whole"]
    return job.status == -9


def test_killed_at_random(tmp_path: Path, reading: Forker, record: str) -> None:
    killed = [kill(reading, tmp_path / str(seed), record, seed) for seed in range(3)]
    assert any(killed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 180))
def test_killed_at_random_often(tmp_path: Path, reading: Forker, record: str, seed: int) -> None:
    kill(reading, tmp_path, record, seed)


def test_ctrl_c_changes_nothing_in_the_end(tmp_path: Path, reading: Forker, record: str) -> None:
    choice = random.Random(1)
    job = reading.start("reliability.reading:interrupted", path=str(tmp_path), record=record)
    assert job.next() == "begun"
    said, times = "interrupted", 0
    while said == "interrupted" and times < 6:
        time.sleep(choice.uniform(0, 0.3))
        job.kill(signal.SIGINT)
        said, times = job.next(), times + 1
    job.end()
    assert "interrupted" in job.said
    assert "whole" in job.said
