"""Files that were made to harm: of every reader comes nothing but what is right or an error of memcore's."""

from __future__ import annotations

import ast
import functools
import itertools
import json
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fuzz.catalogue import TARGETS
from memcore.config import MemoryConfig
from memcore.errors import BackendError, ConfigError, CorruptedError, EvaluationError, TrainingError
from memcore.evaluation.questions import read_questions
from memcore.evaluation.record import Record
from memcore.files import replacing
from memcore.testing import make_chunks
from memcore.training.log import TrainingLog
from reliability.forking import Forker, forker

SHORT = {
    "configurations": 500,
    "entries": 25,
    "graphs": 200,
    "memories": 15,
    "pages": 150,
    "records": 800,
    "requests": 300,
    "texts": 300,
}
"""Changed files that each target reads in the tests that always run: 2,290."""

LONG = {
    "configurations": 20_000,
    "entries": 2000,
    "graphs": 20_000,
    "memories": 1500,
    "pages": 15_000,
    "records": 50_000,
    "requests": 20_000,
    "texts": 20_000,
}
"""Likewise in ``make test-crashes``, twice: 297,000."""

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def fuzzing() -> Iterator[Forker]:
    with forker("fuzz.chance") as started:
        yield started


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where there is such: thousands of files are synced."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() and os.access(shm, os.W_OK) else None) as made:
        yield Path(made)


@pytest.mark.skipif(os.name != "posix", reason="needs fork")
@pytest.mark.parametrize("target", TARGETS)
def test_changed_files_are_refused_or_read(target: str, fuzzing: Forker, folder: Path) -> None:
    fuzzing.do("fuzz.chance:read_changed", name=target, folder=str(folder), seed=1, times=SHORT[target])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(os.name != "posix", reason="needs fork")
@pytest.mark.parametrize("seed", [100, 101])
@pytest.mark.parametrize("target", TARGETS)
def test_thousands_of_changed_files(target: str, seed: int, fuzzing: Forker, folder: Path) -> None:
    for part in range(20):  # a job that takes too long counts as hanging
        times = LONG[target] // 20
        fuzzing.do(
            "fuzz.chance:read_changed", name=target, folder=str(folder / str(part)), seed=20 * seed + part, times=times
        )


@functools.cache
def sources() -> list[tuple[Path, ast.AST]]:
    """Return every node of the project's own code."""
    rooms = ("memcore", "backends", "adapters", "examples")
    paths = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    return [(path, node) for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]


def name_of(node: ast.AST) -> str:
    """Return ``a.b.c`` for such an expression."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def test_nothing_is_imported_that_runs_what_it_reads() -> None:
    forbidden = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
    imported = set()
    for path, node in sources():
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found = forbidden & {name.partition(".")[0] for name in names}
        assert not found, f"{path}:{getattr(node, 'lineno', 0)} imports {found}"
        imported |= set(names)
    assert {"safetensors.torch", "json", "yaml"} <= imported  # the walk sees imports inside of functions, too


def test_nothing_is_called_that_runs_what_it_is_given() -> None:
    forbidden = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
    loaders = (
        "torch.load",
        "np.load",
        "numpy.load",
        "yaml.load",
        "yaml.unsafe_load",
        "yaml.full_load",
        "yaml.load_all",
    )
    called = set()
    for path, node in sources():
        if isinstance(node, ast.Call):
            name = name_of(node.func)
            assert name not in forbidden, f"{path}:{node.lineno} calls {name}"
            assert name not in loaders, f"{path}:{node.lineno} calls {name}"
            told = {keyword.arg: keyword.value for keyword in node.keywords}
            assert "allow_pickle" not in told, f"{path}:{node.lineno}"
            shell = told.get("shell")
            assert shell is None or not getattr(shell, "value", True), f"{path}:{node.lineno} calls a shell"
            called.add(name)
    assert {"yaml.safe_load", "torch.frombuffer"} <= called


ENDLESS = "a: &a [x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n" for before, after in itertools.pairwise("abcdefghi")
)
"""Ten times ten times ten ..."""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "[" * 100_000),
        ("a.toml", "a = " + "[" * 100_000),
        ("a.yaml", "[" * 1000),
        ("a.yaml", ENDLESS),
        ("a.yaml", "backend_options: &a {a: *a}"),
        ("a.yaml", "window: !!int ''"),
        ("a.yaml", "window: !!bool 7"),
        ("a.yaml", "window: !!timestamp x"),
        ("a.json", '{"window": ' + "9" * 5000 + "}"),
        ("a.json", '{"window": 1e999}'),
        ("a.toml", "x" * (1 << 21)),
        ("a.json", "{" + ", ".join(f'"a{number}": 0' for number in range(20_000)) + "}"),
    ],
    ids=lambda value: value[:12],
)  # fmt: skip
def test_a_configuration_without_end_is_refused(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        MemoryConfig.from_file(tmp_path / name)
    assert len(str(caught.value)) < 20_000


def test_a_configuration_that_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").symlink_to(os.devnull)
    with pytest.raises(ConfigError, match="no file"):
        MemoryConfig.from_file(tmp_path / "a.toml")


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:pathlib.Path.touch [{path!r}]", "!!python/object/new:os.system ['touch {path}']",
     "!!python/name:os.system", "!!python/module:os"],
)  # fmt: skip
def test_a_configuration_runs_nothing(tag: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (tmp_path / "a.yaml").write_text(f"backend: {tag.format(path=str(victim))}")
    with pytest.raises(ConfigError, match="constructor for the tag"):
        MemoryConfig.from_file(tmp_path / "a.yaml")
    assert not victim.exists()


def test_a_backend_is_a_name_and_no_module() -> None:
    from memcore.plugins import registry

    for name in ("os", "os.system", "../evil", "memcore_lmdb.backend:LmdbBackend", "/tmp/evil.py"):
        with pytest.raises(ConfigError):
            registry().load_component("backends", name)


DEEP = "[" * 100_000


def test_lines_and_records_nested_without_end_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(DEEP)
    with pytest.raises(EvaluationError, match="nested too deeply"):
        read_questions(file)
    with pytest.raises(EvaluationError, match="nested too deeply"):
        Record(file, "ppl", {})
    assert TrainingLog(file).lines == []  # as of a line that was cut off


@pytest.mark.parametrize(
    "text",
    ['{"evaluation": "ppl", "settings": 3, "results": {}}', '{"evaluation": "ppl", "settings": {}, "results": []}'],
)
def test_results_of_another_kind_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(EvaluationError, match="no record"):
        Record(tmp_path / "a.json", "ppl", {})


@pytest.mark.parametrize(
    "line", ['{"stage": "a", "step": "3"}', '{"stage": ["a"], "step": 3}', '{"stage": "a", "step": 3, "loss": "x"}']
)
def test_a_log_of_other_kinds_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(line)
    with pytest.raises(TrainingError, match="not a line"):
        TrainingLog(tmp_path / "log.jsonl")


def test_nothing_is_written_through_a_link_beside_a_file(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "a.json.part").symlink_to(victim)
    with replacing(tmp_path / "a.json") as new:
        new.write_text("new")
    assert victim.read_text() == "precious"
    assert (tmp_path / "a.json").read_text() == "new"


@pytest.mark.parametrize("name", ["memory-000001.lmdb", "memory-000001.lmdb-lock", "writer.lock", "compacting.tmp"])
@pytest.mark.parametrize("read_only", [True, False])
def test_nothing_is_written_through_a_link_in_the_folder_of_a_memory(
    name: str, read_only: bool, tmp_path: Path
) -> None:
    pytest.importorskip("lmdb")
    from memcore_lmdb.backend import LmdbBackend
    from memcore_lmdb.options import LmdbOptions

    with LmdbBackend(LmdbOptions(path=tmp_path / "memory")) as backend:
        backend.store("a", make_chunks(1))
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "memory" / name).unlink(missing_ok=True)
    (tmp_path / "memory" / name).symlink_to(victim)
    with pytest.raises(BackendError, match="is a link"):
        LmdbBackend(LmdbOptions(path=tmp_path / "memory", read_only=read_only))
    assert victim.read_text() == "precious"
    (tmp_path / "linked").symlink_to(tmp_path)
    LmdbBackend(LmdbOptions(path=tmp_path / "linked" / "other")).close()  # a folder may be a link


@pytest.mark.parametrize(
    "change",
    [
        {"files": "../elsewhere"},
        {"files": "/"},
        {"namespaces": [{"name": "a", "next_id": 1, "dtype": "load", "chunks": {}}]},
        {"namespaces": [{"name": "a", "next_id": 1, "dtype": "float32", "chunks": {"name": "../../victim"}}]},
        {"namespaces": 7},
        {"namespaces": ["a"]},
    ],
    ids=str,
)
def test_a_manifest_that_leads_elsewhere_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("hnswlib", reason="hnswlib is not installed")
    from memcore_hnswlib.backend import HnswlibBackend
    from memcore_hnswlib.options import HnswlibOptions

    options = HnswlibOptions(path=tmp_path / "memory", exact_below=0)
    with HnswlibBackend(options) as backend:
        backend.store("a", make_chunks(3))
    manifest = tmp_path / "memory" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **change}))
    with pytest.raises(CorruptedError):
        HnswlibBackend(options)


def test_a_graph_whose_links_lead_nowhere_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("hnswlib", reason="hnswlib is not installed")
    from fuzz.graphs import Graphs

    target = Graphs(tmp_path)
    from memcore_hnswlib.graph_file import check_graph
    from memcore_hnswlib.options import HnswlibOptions

    graph = target.seeds()[2][1:]
    (tmp_path / "graph").write_bytes(graph)
    options = HnswlibOptions(exact_below=0, M=3)
    check_graph(tmp_path / "graph", options, size=5, count=80, dead=16)
    for at, number in ((96 + 4, 10**9), (52, 10**9), (8, 10**12), (96, 200)):  # a link, the entry, the room, a count
        damaged = bytearray(graph)
        struct.pack_into("<I" if number < 2**32 else "<Q", damaged, at, number)
        (tmp_path / "graph").write_bytes(damaged)
        with pytest.raises(CorruptedError):
            check_graph(tmp_path / "graph", options, size=5, count=80, dead=16)


def test_a_bank_keeps_uses_of_what_a_backend_brought_along(tmp_path: Path) -> None:
    """Found by a target: ids and the backend's ids were one tensor, which safetensors does not write."""
    pytest.importorskip("lmdb")
    from reliability.opening import open_backend, open_bank

    with open_backend("lmdb", tmp_path) as backend:
        backend.store("a", make_chunks(3))
    bank = open_bank("lmdb", tmp_path)
    bank.retrieve("a", torch.zeros(1, 5), 2)
    bank.close()
    bank = open_bank("lmdb", tmp_path)
    assert bank.usage("a").retrievals.sum() == 2
    bank.close()


def test_lora_of_a_rank_that_no_weight_has_room_for_is_refused(tmp_path: Path) -> None:
    """Before adapters of that rank are made."""
    from safetensors.torch import save_file

    from memcore.training.saved import DESCRIPTION, WEIGHTS, load_trained

    said = {"format": 1, "memcore": "0", "model": "m", "frozen": "", "memory": None, "plans": [{"lora_rank": 10**9}]}
    (tmp_path / DESCRIPTION).write_text(json.dumps(said))
    save_file({"q.lora_A.weight": torch.zeros(2, 48)}, tmp_path / WEIGHTS)
    with pytest.raises(TrainingError, match="rank 1000000000"):
        load_trained("never looked at", tmp_path)
