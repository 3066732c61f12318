"""Damaged files: what is damaged is found and named, all else can be read, and what is sound can be copied."""

from __future__ import annotations

import os
import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cli_runner import run

from reliability.forking import Forker, forker

pytest.importorskip("lmdb")
from lmdb_memories import file_of, open_at
from memcore_lmdb.backend import LmdbBackend
from memcore_lmdb.format import NAMESPACE, name_key
from memcore_lmdb.options import LmdbOptions
from memcore_lmdb.pages import Snapshot

from memcore.errors import BackendError, CorruptedError
from memcore.testing import assert_same_chunks, make_chunks
from memcore.testing.contents import Contents, assert_same_contents, contents_of
from reliability.damaging import Chunks, flat, make, read


@pytest.fixture(scope="module")
def damaging() -> Iterator[Forker]:
    with forker("reliability.damaging") as started:
        yield started


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "memory"
    make(path)
    return path


@pytest.fixture(scope="module")
def want(original: Path) -> Contents:
    with open_at(original, read_only=True) as backend:
        return contents_of(backend)


@pytest.fixture
def path(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "memory")


@pytest.mark.parametrize("seed", [1, 4])
def test_a_flipped_bit_is_found_and_everything_else_is_read(path: Path, damaging: Forker, seed: int) -> None:
    (counts,) = damaging.do("reliability.damaging:damage_often", path=str(path), seed=seed, times=20)
    assert counts["refused"] + counts["noticed"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_hundreds_of_flipped_bits(path: Path, damaging: Forker, seed: int) -> None:
    (counts,) = damaging.do("reliability.damaging:damage_often", path=str(path), seed=seed, times=100)
    assert counts["refused"] + counts["noticed"] > 5


def salvaged(path: Path, want: Contents) -> Chunks:
    """Salvage a damaged memory and return the chunks that were saved, each of which is as it was."""
    target = path.parent / "salvaged"
    assert LmdbBackend.salvage(LmdbOptions(path=path), target)
    with open_at(target) as backend:
        assert backend.verify() == []
        saved = flat(contents_of(backend))
    for place, chunk in saved.items():
        assert_same_chunks(chunk, flat(want)[place])
    return saved


@pytest.mark.parametrize("seed", range(3))
def test_many_damaged_places_at_once(path: Path, want: Contents, seed: int) -> None:
    choice = random.Random(seed)
    content = bytearray(file_of(path).read_bytes())
    for _ in range(30):
        content[choice.randrange(2 * 4096, len(content))] ^= 1 << choice.randrange(8)
    file_of(path).write_bytes(content)
    saved = salvaged(path, want)
    assert len(saved) > len(flat(want)) // 4


def test_a_branch_that_leads_astray_loses_nothing(path: Path, want: Contents) -> None:
    with Snapshot(file_of(path)) as snapshot:
        root = snapshot.meta.main.root
    content = bytearray(file_of(path).read_bytes())
    (node,) = struct.unpack_from("<H", content, root * 4096 + 18)  # the second
    content[root * 4096 + node] ^= 0xFF
    file_of(path).write_bytes(content)
    with pytest.raises(CorruptedError, match="is damaged"):
        open_at(path, read_only=True)
    assert LmdbBackend.salvage(LmdbOptions(path=path), path.parent / "salvaged")
    with open_at(path.parent / "salvaged") as backend:
        assert_same_contents(contents_of(backend), want)


def test_a_namespace_that_came_in_the_place_of_one_whose_key_is_damaged_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    with open_at(path) as backend:
        backend.store("a", make_chunks(3))
    key = name_key(NAMESPACE, "a")
    content = file_of(path).read_bytes()
    file_of(path).write_bytes(content.replace(key, key[:-1] + bytes([key[-1] ^ 1])))
    with open_at(path) as backend:
        assert backend.count("a") == 0, "it is not found"
        backend.store("a", make_chunks(2, seed=1))
        backend.flush()
        told = [damage.problem for damage in backend.verify()]
    assert told == [
        "namespace 'a': its key is damaged, so it is not found under its name",
        "namespace 'a': there is another of that name; a copy calls this one 'a (number 1)'",
    ]
    LmdbBackend.salvage(LmdbOptions(path=path), tmp_path / "salvaged")
    with open_at(tmp_path / "salvaged") as backend:
        assert backend.verify() == []
        assert_same_chunks(backend.fetch("a (number 1)", torch.arange(3)), make_chunks(3))
        assert_same_chunks(backend.fetch("a", torch.arange(2)), make_chunks(2, seed=1))


@pytest.mark.parametrize("part", [0.9, 0.5, 0.1])
def test_of_a_file_cut_short_the_rest_is_saved(path: Path, want: Contents, part: float) -> None:
    with Snapshot(file_of(path)) as snapshot:
        size = snapshot.meta.last_page * 4096
    os.truncate(file_of(path), int(part * size))
    for read_only in (True, False):
        with pytest.raises(CorruptedError, match="cut short"):
            open_at(path, read_only=read_only)
    salvaged(path, want)


def other_byte_order(content: bytes) -> bytes:
    """Return two metas as a big-endian machine writes them."""
    swapped = bytearray(content)
    for page in (0, 4096):
        for at, form in ((16, "I"), (20, "I"), (40, "I")):
            struct.pack_into(f">{form}", swapped, page + at, *struct.unpack_from(f"<{form}", content, page + at))
    return bytes(swapped)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 4096, b"SQLite format 3\0" + bytes(9000), b"x" * 100_000, None],
    ids=["empty", "zeros", "sqlite", "text", "big-endian"],
)
def test_a_file_of_something_else_is_refused(path: Path, content: bytes | None) -> None:
    file_of(path).write_bytes(other_byte_order(file_of(path).read_bytes()) if content is None else content)
    before = file_of(path).read_bytes()
    with pytest.raises(BackendError):
        open_at(path, read_only=True)
    if before:  # an empty one may be that of a memory that was just being made
        with pytest.raises(CorruptedError):
            open_at(path)
        with pytest.raises(CorruptedError):
            LmdbBackend.salvage(LmdbOptions(path=path), path.parent / "salvaged")
        assert file_of(path).read_bytes() == before
    assert not (path.parent / "salvaged").exists()


def test_the_command_line_tells_what_is_lost_and_saves_the_rest(path: Path, want: Contents) -> None:
    target = str(path.parent / "salvaged")
    assert run("memory", "salvage", str(path), target).exit_code == 0
    shutil.rmtree(target)
    content = file_of(path).read_bytes()
    with open_at(path, read_only=True) as backend:
        keys = backend.fetch("namespace 3", backend.ids("namespace 3")[5:6])
    payload = keys.keys[0, :, : int(keys.lengths[0])].contiguous().numpy().tobytes()
    assert payload in content
    file_of(path).write_bytes(content.replace(payload, bytes(len(payload))))
    result = run("memory", "verify", str(path))
    assert result.exit_code == 1
    assert "namespace 'namespace 3', chunk 5: the checksum of the payload does not match" in result.stdout
    result = run("memory", "salvage", str(path), target)
    assert result.exit_code == 1
    assert "'namespace 3', chunk 5" in result.stdout
    with open_at(Path(target)) as backend:
        assert len(flat(contents_of(backend))) == len(flat(want)) - 1
    assert run("memory", "verify", target).exit_code == 0
    assert "there already" in run("memory", "salvage", str(path), target).stderr


def test_a_memory_that_does_not_open_is_verified(path: Path) -> None:
    with Snapshot(file_of(path)) as snapshot:
        root = snapshot.meta.main.root
    content = bytearray(file_of(path).read_bytes())
    content[root * 4096 + 12] ^= 1
    file_of(path).write_bytes(content)
    assert "memcore memory salvage" in run("memory", "list", str(path)).stderr
    for more in ((), ("--json",)):
        result = run("memory", "verify", str(path), *more)
        assert result.exit_code == 1
        assert f"page {root} does not begin as it should" in result.stdout


def test_a_memory_in_use_is_not_salvaged(path: Path) -> None:
    with open_at(path), pytest.raises(BackendError, match="open for writing"):
        LmdbBackend.salvage(LmdbOptions(path=path))


def test_what_lmdb_itself_finds_is_found(path: Path) -> None:
    verify = pytest.importorskip("lmdb.verify", reason="this version of lmdb has no verifier").verify
    choice = random.Random(5)
    content = file_of(path).read_bytes()
    found = 0
    for _ in range(60):
        damaged = bytearray(content)
        damaged[4096 * choice.randrange(2, len(content) // 4096) + choice.randrange(200)] ^= 1 << choice.randrange(8)
        file_of(path).write_bytes(damaged)
        try:
            problems = verify(str(file_of(path)), subdir=False)
        except Exception as error:
            problems = [str(error)]
        if problems:
            found += 1
            _, damage = read(path, Contents(chunks={}, records={}))
            assert damage is None or damage, problems
    assert found
