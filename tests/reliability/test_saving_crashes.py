"""What is saved as a whole is the old or the new after a kill: graphs of hnswlib, and files that are replaced."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from reliability.forking import Forker, forker

pytest.importorskip("hnswlib")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")


@pytest.fixture(scope="module")
def saving() -> Iterator[Forker]:
    with forker("reliability.saving") as started:
        yield started


def kill_on(saving: Forker, path: Path, seed: int, times: int) -> None:
    choice = random.Random(seed)
    graph = file = 0
    for _ in range(times):
        job = saving.start("reliability.saving:run", path=str(path), die_after=choice.randrange(1, 4000))
        said = job.end()
        assert job.status == -9
        graph = max([graph, *(number for kind, number in said if kind == "graph")])
        file = max([file, *(number for kind, number in said if kind == "file")])
        ((graph, file),) = saving.do("reliability.saving:check", path=str(path), graph=graph, file=file)


def test_killed_at_random(tmp_path: Path, saving: Forker) -> None:
    kill_on(saving, tmp_path, 0, 10)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
def test_killed_at_random_often(tmp_path: Path, saving: Forker, seed: int) -> None:
    kill_on(saving, tmp_path, seed, 20)
