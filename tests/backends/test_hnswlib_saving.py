from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from int8_tolerance import assert_same_but_for_int8

from memcore.errors import BackendError, ConfigError, CorruptedError
from memcore.options import structure_options
from memcore.testing import BackendTests, assert_same_chunks, make_chunks, select

pytest.importorskip("hnswlib")

from memcore_hnswlib import snapshot
from memcore_hnswlib.backend import HnswlibBackend
from memcore_hnswlib.graph import HnswlibVectors
from memcore_hnswlib.options import HnswlibOptions

QUERIES = torch.randn(9, 5, generator=torch.Generator().manual_seed(7))


def open_at(path: Path, **options: Any) -> HnswlibBackend:
    return HnswlibBackend(HnswlibOptions(**{"exact_below": 0, "path": path, **options}))


class TestContractWithAFolder(BackendTests):
    exact = False

    def open(self, path: Path) -> HnswlibBackend:
        return open_at(path / "state")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with 100 chunks less the first 20 in ``a``, and one chunk in ``b/~ ü``."""
    path = tmp_path / "state"
    with open_at(path) as backend:
        backend.evict("a", backend.store("a", make_chunks(100, dtype=torch.bfloat16))[:10])
        backend.retrieve("a", QUERIES, 4)
        backend.evict("a", torch.arange(10, 20))
        backend.store("b/~ ü", make_chunks(1))
    return path


def test_what_was_saved_is_there_again(saved: Path) -> None:
    with open_at(saved) as backend:
        assert backend.namespaces() == ["a", "b/~ ü"]
        assert backend.ids("a").tolist() == list(range(20, 100))
        assert_same_chunks(
            backend.fetch("a", backend.ids("a")), select(make_chunks(100, dtype=torch.bfloat16), slice(20, None))
        )
        assert backend.store("a", make_chunks(1, dtype=torch.bfloat16)).tolist() == [100]


def test_a_loaded_graph_answers_as_before_and_is_not_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_at(tmp_path) as backend:
        chunks = make_chunks(200)
        backend.store("a", attrs.evolve(chunks, embeddings=chunks.embeddings + 10))
        before = backend.retrieve("a", QUERIES, 4)
    monkeypatch.setattr(HnswlibVectors, "start", lambda *_: pytest.fail("a graph was built"))
    with open_at(tmp_path) as backend:
        after = backend.retrieve("a", QUERIES, 4)
        assert torch.equal(before.ids, after.ids)
        assert torch.equal(before.scores, after.scores)


def test_a_loaded_backend_goes_on(saved: Path) -> None:
    with open_at(saved) as backend:
        backend.evict("a", torch.arange(20, 30))
        ids = backend.store("a", make_chunks(30, seed=4, dtype=torch.bfloat16))
        found = backend.retrieve("a", QUERIES, 100)
        assert all(sorted(row) == [*range(30, 100), *ids.tolist()] for row in found.ids.tolist())
        assert_same_chunks(backend.fetch("a", ids), make_chunks(30, seed=4, dtype=torch.bfloat16))
    with open_at(saved) as backend:
        assert backend.count("a") == 100


@pytest.mark.parametrize("changed", [{"M": 8}, {"seed": 3}, {"ef_construction": 50}])
def test_a_graph_built_with_other_options_is_built_anew(saved: Path, changed: dict[str, int]) -> None:
    with open_at(saved, **changed) as backend:
        assert backend._namespaces["a"].index.coverage is None  # type: ignore[attr-defined]
        assert backend.retrieve("a", QUERIES, 4).ids.shape == (9, 4)


def test_int8_is_saved_as_it_is(tmp_path: Path) -> None:
    chunks = make_chunks(20, dtype=torch.float16)
    with open_at(tmp_path, compression="int8") as backend:
        before = backend.fetch("a", backend.store("a", chunks))
    with open_at(tmp_path, compression="int8") as backend:
        after = backend.fetch("a", torch.arange(20))
    assert_same_chunks(after, before)
    assert_same_but_for_int8(after, chunks)


def test_another_compression_is_refused(saved: Path) -> None:
    with pytest.raises(ConfigError, match="compression"):
        open_at(saved, compression="int8")


def test_saving_elsewhere_makes_a_copy(saved: Path, tmp_path: Path) -> None:
    with open_at(saved) as backend:
        backend.save(tmp_path / "copy")
        backend.drop("a")
    with open_at(tmp_path / "copy") as backend:
        assert backend.count("a") == 80


def test_saving_needs_a_folder(tmp_path: Path) -> None:
    with HnswlibBackend(HnswlibOptions()) as backend, pytest.raises(ConfigError, match="path"):
        backend.save()
    (tmp_path / "file").touch()
    with HnswlibBackend(HnswlibOptions()) as backend, pytest.raises(BackendError, match="file"):
        backend.save(tmp_path / "file" / "state")


def test_an_old_state_is_removed_when_the_new_one_is_complete(saved: Path) -> None:
    with open_at(saved):
        pass
    assert sorted(path.name for path in saved.iterdir()) == ["2", snapshot.MANIFEST]


@pytest.mark.parametrize("step", ["save_file", "_described", "sync"])
def test_a_save_that_fails_leaves_the_old_state(saved: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    backend = open_at(saved)
    backend.store("a", make_chunks(5, dtype=torch.bfloat16))
    with monkeypatch.context() as patch:
        patch.setattr(snapshot, step, fail)
        with pytest.raises(BackendError, match="no space left"):
            backend.save()
    with open_at(saved) as other:  # what a process sees that was started after a crash
        assert other.count("a") == 80
    backend.save()
    backend.close()
    with open_at(saved) as other:
        assert other.count("a") == 85


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_a_save_interrupted_when_it_is_complete_is_there(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def replace_and_interrupt(path: Path, target: Path) -> Path:
        replaced = replace(path, target)
        os.kill(os.getpid(), signal.SIGINT)
        return replaced

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    backend = open_at(saved)
    try:
        backend.store("a", make_chunks(5, dtype=torch.bfloat16))
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace_and_interrupt)
            with pytest.raises(KeyboardInterrupt):
                backend.save()
    finally:
        signal.signal(signal.SIGINT, before)
    with open_at(saved) as other:  # what a process sees that is started next
        assert other.count("a") == 85
    backend.close()
    assert len(list(saved.iterdir())) == 2


@pytest.mark.parametrize("compression", ["none", "int8"])
def test_what_was_loaded_does_not_change_with_the_file(tmp_path: Path, compression: str) -> None:
    chunks = make_chunks(20)
    chunks = attrs.evolve(chunks, embeddings=chunks.embeddings + 10)  # so that there is a centre as well
    with open_at(tmp_path, compression=compression) as backend:
        ids = backend.store("a", chunks)
        found = backend.retrieve("a", QUERIES, 4)
        fetched = backend.fetch("a", ids)
    with open_at(tmp_path, compression=compression) as backend:
        for path in tmp_path.glob("*/*.safetensors"):
            with path.open("r+b") as file:  # the same file, and not one in its place
                file.write(bytes(path.stat().st_size))
        again = backend.retrieve("a", QUERIES, 4)
        assert torch.equal(again.ids, found.ids)
        assert torch.equal(again.scores, found.scores)
        assert torch.equal(backend.ids("a"), ids)
        assert_same_chunks(backend.fetch("a", ids), fetched)


def test_hnswlib_failing_silently_is_noticed(tmp_path: Path) -> None:
    with open_at(tmp_path) as backend:
        backend.store("a", make_chunks(50))
        backend.retrieve("a", QUERIES, 4)
        vectors = backend._namespaces["a"].index.vectors  # type: ignore[attr-defined]
        with pytest.raises(OSError, match="missing"):
            vectors.save(tmp_path / "missing" / "graph")


@pytest.mark.parametrize("suffix", ["hnswlib", "safetensors"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_damaged_files_are_noticed(saved: Path, suffix: str, harm: str) -> None:
    path = next(saved.glob(f"*/*.{suffix}"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes(content if harm == "flip" else content[:-1])
    with pytest.raises(CorruptedError, match=path.name):
        open_at(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "else"}, "does not describe"),
        ({"version": 2}, "version 2"),
        ({"namespaces": [{}]}, "cannot be read"),
    ],
)
def test_other_manifests_are_refused(saved: Path, change: dict[str, Any], message: str) -> None:
    manifest = json.loads((saved / snapshot.MANIFEST).read_text())
    (saved / snapshot.MANIFEST).write_text(json.dumps(manifest | change))
    with pytest.raises(CorruptedError, match=message):
        open_at(saved)


def test_a_manifest_that_is_not_json_is_refused(saved: Path) -> None:
    (saved / snapshot.MANIFEST).write_text("{")
    with pytest.raises(CorruptedError, match="JSON"):
        open_at(saved)


def test_the_graph_of_another_dimension_is_refused(saved: Path) -> None:
    # hnswlib would load it and answer nonsense.
    manifest = json.loads((saved / snapshot.MANIFEST).read_text())
    other = saved.parent / "other"
    with open_at(other) as backend:
        backend.store("a", make_chunks(100, size=8))
        backend.retrieve("a", torch.zeros(1, 8), 4)
    shutil.copy(next(other.glob("*/*.hnswlib")), next(saved.glob("*/*.hnswlib")))
    with pytest.raises(CorruptedError, match=manifest["namespaces"][0]["graph"]["file"]["name"]):
        open_at(saved)


def test_the_path_may_come_from_a_file() -> None:
    options = structure_options(HnswlibOptions, {"path": "memory", "compression": "int8", "pin_memory": False})
    assert options.path == Path("memory")
    assert structure_options(HnswlibOptions, {"path": None}).path is None
