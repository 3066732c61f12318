"""Reads changed bytes, a number of times, in a process whose memory is limited: one may end with it."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random

import torch

from fuzz.catalogue import target
from fuzz.mutation import mutated
from fuzz.target import limited_memory

MEMORY = 1 << 30
"""Bytes that a reader may take, and LMDB's address space is among them."""

LONGEST = 20.0
"""Seconds that one reading may take, on a machine that does other things as well."""


def read_changed(name: str, folder: str, *, seed: int, times: int) -> None:
    """Read changed bytes.

    Args:
        name: of the target.
        folder: for its files; nothing else may be written.
        seed: of the changes.
        times: how often.

    Raises:
        AssertionError: something came of it; the message says how to do it again.
    """
    torch.set_num_threads(1)
    choice = Random(seed)
    inside = Path(folder) / "inside"
    made = target(name, inside)
    seeds = made.seeds()
    for number in range(times):
        data = mutated(choice.choice(seeds), choice, seeds)
        (inside / "last").write_bytes(data)  # for whoever looks after a crash
        begun = time.monotonic()
        try:
            with limited_memory(MEMORY):
                made.read(data)
        except BaseException as error:
            raise AssertionError(f"{name}, seed {seed}, number {number}: {error!r} with {data[:300]!r}") from error
        took = time.monotonic() - begun
        assert took < LONGEST, f"{name}, seed {seed}, number {number} took {took:.1f} s with {data[:300]!r}"
        assert list(Path(folder).iterdir()) == [inside], f"{name}, seed {seed}, number {number} wrote elsewhere"
