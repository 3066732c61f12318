"""An hnswlib memory that is saved, and a file that is replaced, again and again, until the process is killed."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from memcore_hnswlib.backend import HnswlibBackend
from memcore_hnswlib.options import HnswlibOptions

from memcore.files import replacing
from memcore.testing import assert_same_chunks, make_chunks
from reliability.forking import say
from reliability.killing import die_at_step


def run(path: str, die_after: int) -> None:
    """Save a state of so many chunks as there were saves, and say which is saved."""
    torch.set_num_threads(1)
    folder = Path(path)
    die_at_step(die_after)
    backend = HnswlibBackend(HnswlibOptions(path=folder / "graph", exact_below=0))
    while True:
        number = backend.count("a") + 1
        backend.store("a", make_chunks(1, seed=number))
        backend.retrieve("a", torch.zeros(1, 5), 1)
        backend.save()
        say(["graph", number])
        with replacing(folder / "file.json") as new:
            new.write_text(json.dumps([number] * 1000))
        say(["file", number])


def check(path: str, graph: int, file: int) -> None:
    """See that what was saved last is there, or what was being saved, and whole; say the numbers of both."""
    torch.set_num_threads(1)
    folder = Path(path)
    with HnswlibBackend(HnswlibOptions(path=folder / "graph", exact_below=0)) as backend:
        count = backend.count("a")
        assert count in (graph, graph + 1)
        for place, id in enumerate(backend.ids("a").tolist(), 1):
            assert_same_chunks(backend.fetch("a", torch.tensor([id])), make_chunks(1, seed=place))
    assert len(list((folder / "graph").iterdir())) == 2
    number = 0
    if file or (folder / "file.json").exists():
        number, *others = json.loads((folder / "file.json").read_text())
        assert others == [number] * 999
        assert file <= number <= count
    say([count, number])
