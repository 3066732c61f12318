"""Reads a memory that was damaged, and tells what became of it. A process of its own: it may not survive."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import torch
from lmdb_memories import file_of, open_at
from memcore_lmdb.backend import LmdbBackend
from memcore_lmdb.options import LmdbOptions
from memcore_lmdb.pages import Snapshot

from memcore.backend import Damage
from memcore.chunk import ChunkBatch
from memcore.errors import BackendError, CorruptedError
from memcore.testing import make_chunks
from memcore.testing.chunks import assert_same_chunks, random_queries
from memcore.testing.contents import Contents, assert_same_contents, contents_of
from reliability.forking import say

Chunks = dict[tuple[str, int], ChunkBatch]


def make(path: Path) -> None:
    """Make a memory with a past: several namespaces, blocks and records, some pages of which are free."""
    with open_at(path, map_size=1 << 16) as backend:
        for step in range(4):
            for number in range(5):
                backend.store(f"namespace {number}", make_chunks(12, seed=10 * number + step, width=16, key_size=16))
                backend.write_record(f"record {number}", bytes([step]) * (100 if number else 5000))
                backend.flush()
        backend.evict("namespace 0", torch.arange(0, 30, 2))
        backend.drop("namespace 1")
        backend.flush()
        # All that is lost with the page that leads to the last commit.
        backend.write_record("last", b"")


def damage_often(path: str, seed: int, times: int) -> None:
    """Flip a bit of a memory, see what is said of it and what can be read, put it back, and so on."""
    torch.set_num_threads(1)
    folder = Path(path)
    with open_at(folder, read_only=True) as backend:
        want = contents_of(backend)
    file = file_of(folder)
    content = file.read_bytes()
    with Snapshot(file) as snapshot:
        pages = snapshot.meta.last_page + 1
    choice = random.Random(seed)
    counts = {"refused": 0, "noticed": 0, "harmless": 0, "chunks lost": 0, "namespaces lost": 0}
    for _ in range(times):
        place, bit = choose(choice, pages), 1 << choice.randrange(8)
        damaged = bytearray(content)
        damaged[place] ^= bit
        file.write_bytes(damaged)
        try:
            found, lost = look(folder, want)
        except BaseException as error:
            raise AssertionError(f"with bit {bit} of byte {place} flipped") from error
        counts[found] += 1
        counts["chunks lost"] += len(lost)
        names = {name for name, _ in lost}
        counts["namespaces lost"] += any(
            len(want.chunks[name]) == sum(each == name for each, _ in lost) for name in names
        )
        assert len(names) <= 1, f"with bit {bit} of byte {place} flipped, chunks of {names} are lost"
    file.write_bytes(content)
    say(counts)


def choose(choice: random.Random, pages: int) -> int:
    """Choose a byte: often one of those that pages begin with, for what LMDB makes of them."""
    page = choice.randrange(pages)
    if choice.random() < 0.2:
        page = choice.randrange(2)
    return page * 4096 + (choice.randrange(160) if choice.random() < 0.5 else choice.randrange(4096))


def look(folder: Path, want: Contents) -> tuple[str, set[tuple[str, int]]]:
    """Read what can be read of a memory, check that it is right, and salvage it.

    Returns:
        What was noticed, and the chunks that were not salvaged.
    """
    readable, damage = read(folder, want)
    target = folder.parent / f"{folder.name} salvaged"
    try:
        lost_too = LmdbBackend.salvage(LmdbOptions(path=folder), target)
        with open_at(target, read_only=True) as backend:
            assert backend.verify() == []
            salvaged = contents_of(backend)
        with open_at(target) as backend:
            backend.store("new", make_chunks(1))
    finally:
        shutil.rmtree(target, ignore_errors=True)
    saved = flat(salvaged)
    for place, chunk in saved.items():
        assert_same_chunks(chunk, flat(want)[place])
    for name, value in salvaged.records.items():
        assert value == want.records[name]
    assert readable.keys() <= saved.keys()
    if damage is None:
        if not lost_too:  # LMDB refuses it for what nothing is lost with
            assert_same_contents(salvaged, want)
        return "refused", flat(want).keys() - saved.keys()
    assert bool(lost_too) == bool(damage)
    if not damage:
        assert_same_contents(salvaged, want)
        assert readable.keys() == saved.keys()
        return "harmless", set()
    return "noticed", flat(want).keys() - saved.keys()


def read(folder: Path, want: Contents) -> tuple[Chunks, list[Damage] | None]:
    """Return the chunks that can be read, and what ``verify`` says; None if the memory does not open."""
    try:
        backend = open_at(folder, read_only=True)
    except BackendError:  # as a rule CorruptedError; but the file may say that it takes more memory than there is
        return {}, None
    readable: Chunks = {}
    with backend:
        damage = backend.verify()
        for name, held in want.chunks.items():
            for id, chunk in held.items():
                try:
                    got = backend.fetch(name, torch.tensor([id]))
                except BackendError as error:
                    # What is not found for its key is damaged counts as unknown; verify says what happened.
                    _check_told(name, error, damage)
                else:
                    assert_same_chunks(got, chunk)
                    readable[name, id] = got
            try:
                backend.retrieve(name, random_queries(1), 3)
            except CorruptedError as error:
                _check_told(name, error, damage)
    return readable, damage


def _check_told(name: str, error: BackendError, damage: list[Damage]) -> None:
    assert name in str(error)
    assert damage


def flat(contents: Contents) -> Chunks:
    return {(name, id): chunk for name, held in contents.chunks.items() for id, chunk in held.items()}
