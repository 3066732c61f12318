"""Runs a target with atheris: ``python -m fuzz pages -runs=100000``; what follows the name is for libFuzzer."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Final

import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]

with atheris.instrument_imports(include=["memcore", "memcore_lmdb", "memcore_hnswlib", "tomllib", "yaml"]):
    import torch

    from fuzz.catalogue import TARGETS, target
    from fuzz.mutation import mutated

CORPUS: Final = Path(__file__).parent / "corpus"
"""What atheris has found to lead to other branches, a folder for each target."""

_LIMITS: Final = (
    "-len_control=0",
    "-max_len=200000",
    "-timeout=60",
    "-rss_limit_mb=4096",
    "-malloc_limit_mb=2048",
    "-print_final_stats=1",
)


def main() -> None:
    """Fuzz until there is a defect, or ``-runs`` are done."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in TARGETS:
        sys.exit(f"name a target: {', '.join(TARGETS)}")
    torch.set_num_threads(1)
    corpus = CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    shm = "/dev/shm"  # thousands of small files
    folder = Path(shm if os.access(shm, os.W_OK) else tempfile.gettempdir()) / f"memcore-fuzz-{name}-{os.getuid()}"
    shutil.rmtree(folder, ignore_errors=True)  # of the run before: libFuzzer ends the process by itself
    folder.mkdir(mode=0o700)
    with atheris.instrument_imports(include=["memcore", "memcore_lmdb", "memcore_hnswlib"]):
        made = target(name, folder)
    seeds = made.seeds()

    def change(data: bytes, longest: int, seed: int) -> bytes:
        # libFuzzer keeps one of several seeds that lead to the same branches, as whole files of a memory all do.
        choice = Random(seed)
        data = choice.choice(seeds) if choice.random() < 0.5 else data
        if choice.random() < 0.5:
            return mutated(data, choice, seeds)[:longest]
        changed: bytes = atheris.Mutate(data, longest)
        return changed

    for number, each in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(each)
    atheris.Setup([sys.argv[0], *_LIMITS, *sys.argv[2:], str(corpus)], made.read, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
