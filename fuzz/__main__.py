"""Runs a target with atheris: ``python -m fuzz pages -runs=100000``; what follows the name is for libFuzzer."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Final

import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]

with atheris.instrument_imports(include=["memcore", "memcore_lmdb", "memcore_hnswlib", "tomllib", "yaml"]):
    import torch

    from fuzz.catalogue import TARGETS, target

CORPUS: Final = Path(__file__).parent / "corpus"
"""What atheris has found to lead to other branches, a folder for each target."""

_LIMITS: Final = (
    "-timeout=60",
    "-rss_limit_mb=4096",
    "-malloc_limit_mb=2048",
    "-max_len=200000",
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
    folder = tempfile.mkdtemp(dir=shm if os.access(shm, os.W_OK) else None)
    with atheris.instrument_imports(include=["memcore", "memcore_lmdb", "memcore_hnswlib"]):
        made = target(name, Path(folder))
    for number, seed in enumerate(made.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *_LIMITS, *sys.argv[2:], str(corpus)], made.read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
