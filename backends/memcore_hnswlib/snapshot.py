"""The state of an ``hnswlib`` backend in a folder.

``manifest.json`` says everything and names the files: for every namespace its chunks as safetensors and, if it has one,
its graph as hnswlib writes it. Files are never overwritten: each save writes new ones and then puts its manifest in
place of the old, so the folder holds the state of one save or of the other at any moment.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from memcore.approximate_index import ApproximateIndex, Coverage
from memcore.backend_checks import check_embeddings
from memcore.chunk import ChunkBatch
from memcore.chunk_table import ChunkTable
from memcore.errors import BackendError, ConfigError, CorruptedError
from memcore.files import parse_json, sync
from memcore.options import describe
from memcore.uninterrupted import uninterrupted
from memcore_hnswlib.graph import HnswlibVectors
from memcore_hnswlib.graph_file import check_graph

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from memcore_hnswlib.options import HnswlibOptions

MANIFEST: Final = "manifest.json"
_FORMAT: Final = {"format": "memcore-hnswlib", "version": 1}
_CENTRE: Final = "graph_centre"
_FACTS: Final = ("starts", "lengths", "token_ids")
_KEPT: Final = {"ids", "embeddings", *_FACTS, _CENTRE}
"""Tensors that are kept as they are loaded; the others, of keys and values, are copied to where a table has them."""

_LARGEST: Final = 1 << 62
_BUILT_BY: Final = ("M", "ef_construction", "seed")


def write(folder: Path, contents: Mapping[str, tuple[ChunkTable, ApproximateIndex]], options: HnswlibOptions) -> None:
    """Save namespaces, in place of what was saved there. It is durable when this returns.

    Payloads of one namespace at a time are copied in memory.

    Raises:
        BackendError: the folder cannot be written to; what was saved there is as it was.
    """
    unfinished = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        last = max((int(old.name) for old in folder.iterdir() if old.name.isdecimal()), default=0)
        files = unfinished = folder / str(last + 1)
        files.mkdir()
        namespaces = [
            _write_namespace(files, number, name, *held) for number, (name, held) in enumerate(contents.items())
        ]
        manifest = {
            **_FORMAT,
            "files": files.name,
            "compression": options.compression,
            "graph": {name: getattr(options, name) for name in _BUILT_BY},
            "namespaces": namespaces,
        }
        new = files / MANIFEST
        new.write_text(json.dumps(manifest, indent=1) + "\n")
        for written in (*files.iterdir(), files):
            sync(written)
        with uninterrupted:
            new.replace(folder / MANIFEST)
            unfinished = None  # the manifest names it now, so it must not be removed
    except BaseException as error:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)):
            raise BackendError(f"cannot save to {folder}: {error}; what was saved there is as it was") from error
        raise
    try:
        sync(folder)
        for old in folder.iterdir():
            if old.name.isdecimal() and old != files:
                shutil.rmtree(old)
    except OSError as error:
        raise BackendError(f"saved to {folder}, but perhaps not for good yet: {error}") from error


def read(folder: Path, options: HnswlibOptions) -> dict[str, tuple[ChunkTable, ApproximateIndex]]:
    """Load what ``write`` saved; nothing if nothing was. Graphs built with other options are left out.

    Raises:
        BackendError: the folder cannot be read.
        ConfigError: payloads were saved with another compression than the options say.
        CorruptedError: what is there is no such state, of a version not known here, or damaged.
    """
    try:
        try:
            text = (folder / MANIFEST).read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        return _read(folder, _checked_manifest(folder, text), options)
    except OSError as error:
        raise BackendError(f"cannot load from {folder}: {error}") from error
    except UnicodeDecodeError as error:
        raise CorruptedError(f"{folder / MANIFEST} is no text: {error}") from error


def _write_namespace(files: Path, number: int, name: str, table: ChunkTable, index: ApproximateIndex) -> dict[str, Any]:
    tensors = table.tensors()
    record: dict[str, Any] = {"name": name, "next_id": table.next_id, "dtype": str(table.dtype).removeprefix("torch.")}
    coverage = index.coverage
    if coverage is not None:
        assert isinstance(index.vectors, HnswlibVectors)
        graph = files / f"{number}.hnswlib"
        index.vectors.save(graph)
        if coverage.centre is not None:
            tensors[_CENTRE] = coverage.centre
        record["graph"] = {
            "file": _described(graph),
            "space": "ip",
            "dimension": table.embeddings.shape[2],
            "dead": index.vectors.dead,
            **{field.name: getattr(coverage, field.name) for field in attrs.fields(Coverage) if field.name != "centre"},
        }
    path = files / f"{number}.safetensors"
    save_file(tensors, path)
    record["chunks"] = _described(path)
    return record


def _checked_manifest(folder: Path, text: str) -> dict[str, Any]:
    try:
        manifest = parse_json(text)
    except ValueError as error:
        raise CorruptedError(f"{folder / MANIFEST} is not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT["format"]:
        raise CorruptedError(f"{folder / MANIFEST} does not describe the state of an hnswlib backend")
    if manifest.get("version") != _FORMAT["version"]:
        raise CorruptedError(
            f"{folder / MANIFEST} has version {manifest.get('version')}, this memcore reads {_FORMAT['version']}"
        )
    return manifest


def _read(
    folder: Path, manifest: dict[str, Any], options: HnswlibOptions
) -> dict[str, tuple[ChunkTable, ApproximateIndex]]:
    try:
        if manifest["compression"] != options.compression:
            raise ConfigError(
                f"{folder} was saved with compression={manifest['compression']!r}, not {options.compression!r}"
            )
        same_graph = all(manifest["graph"][name] == getattr(options, name) for name in _BUILT_BY)
        return {
            _text(record["name"]): _read_namespace(_inside(folder, manifest["files"]), record, options, same_graph)
            for record in manifest["namespaces"]
        }
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, (BackendError, ConfigError)):
            raise
        raise CorruptedError(f"what was saved in {folder} cannot be read: {error!r}") from error


def _read_namespace(
    files: Path, record: dict[str, Any], options: HnswlibOptions, same_graph: bool
) -> tuple[ChunkTable, ApproximateIndex]:
    tensors = load_file(_intact(files, record["chunks"]))
    for name in _KEPT & tensors.keys():
        # They are the file itself, mapped, which another process may change, and Windows cannot remove.
        tensors[name] = tensors[name].clone()
    centre = tensors.pop(_CENTRE, None)
    dtype = getattr(torch, _text(record["dtype"]), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"keys and values are said to be {record['dtype']!r}")
    _check_chunks(tensors, record["next_id"], dtype, options.compression)
    table = ChunkTable(compression=options.compression, pin_memory=options.pin_memory)
    table.restore(tensors, next_id=record["next_id"], dtype=dtype)
    vectors, coverage, graph = HnswlibVectors(options), None, record.get("graph")
    if graph is not None and same_graph:
        names = [field.name for field in attrs.fields(Coverage) if field.name != "centre"]
        coverage = Coverage(centre=centre, **{name: _number(graph[name]) for name in names})
        _check_coverage(coverage, table)
        size, dead = table.embeddings.shape[2], _number(graph["dead"])
        path, count = _intact(files, graph["file"]), coverage.live + dead
        check_graph(path, options, size=size, count=count, dead=dead)
        vectors.load(path, size=size, count=count, dead=dead)
    return table, ApproximateIndex(vectors, exact_below=options.exact_below, seed=options.seed, coverage=coverage)


def _check_chunks(tensors: Mapping[str, Tensor], next_id: object, dtype: torch.dtype, compression: str) -> None:
    """Raise unless these are chunks: what :meth:`memcore.chunk_table.ChunkTable.tensors` returns."""
    ids, embeddings = tensors["ids"], tensors["embeddings"]
    keys, values = tensors["keys"], tensors["values"]
    if compression == "int8":
        by_key, by_value = (*keys.shape[:2], *keys.shape[3:]), values.shape[:3]
        scales = {"key_scales": by_key, "key_offsets": by_key, "value_scales": by_value, "value_offsets": by_value}
        for name, shape in scales.items():
            if tensors[name].shape != shape or tensors[name].dtype != torch.float32:
                raise ValueError(f"{name} are {tensors[name].dtype} {list(tensors[name].shape)}")
        if keys.dtype != torch.int8 or values.dtype != torch.int8:
            raise ValueError(f"compressed keys and values are {keys.dtype} and {values.dtype}")
        dtype = torch.float8_e5m2  # as wide, and floating as ChunkBatch wants it
        keys, values = keys.view(dtype), values.view(dtype)
    facts = {name: tensors[name] for name in _FACTS}
    chunks = ChunkBatch(embeddings=embeddings, keys=keys, values=values, **facts)
    if chunks.keys.dtype != dtype or len(tensors) != len(_FACTS) + (8 if compression == "int8" else 4):
        raise ValueError(f"keys are {chunks.keys.dtype}, and there are {', '.join(sorted(tensors))}")
    check_embeddings(chunks)
    in_order = ids.dtype == torch.int64 and ids.shape == (len(chunks),) and bool((ids.diff() > 0).all())
    if not in_order or (len(ids) and not 0 <= int(ids[0]) <= int(ids[-1]) < _number(next_id)):
        raise ValueError("the ids of chunks are not in order, each once")


def _check_coverage(coverage: Coverage, table: ChunkTable) -> None:
    """Raise unless a graph may cover so much of a table."""
    chunks, per_chunk, size = table.embeddings.shape
    centre = coverage.centre
    if centre is not None and (centre.shape != (size,) or centre.dtype != torch.float32):
        raise ValueError(f"the centre of the graph is {centre.dtype} {list(centre.shape)}")
    if coverage.vectors_per_chunk != per_chunk or coverage.live > chunks * per_chunk or coverage.live % per_chunk:
        raise ValueError(f"the graph is of {coverage.live} vectors, the chunks have {chunks} times {per_chunk}")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a text, got {describe(value)}")
    return value


def _number(value: object) -> int:
    if type(value) is not int or not -1 <= value < _LARGEST:
        raise ValueError(f"expected a number of things, got {describe(value)}")
    return value


def _inside(folder: Path, name: object) -> Path:
    """Return the path of what has a name in a folder and is no link, so that nothing elsewhere is read."""
    path: Path = folder / _text(name)
    if path.parent != folder or path.name in ("", "..") or path.is_symlink():
        raise ValueError(f"{name!r} is not in {folder}")
    return path


def _described(path: Path) -> dict[str, Any]:
    """Return name, size and checksum of a file."""
    with path.open("rb") as file:
        return {
            "name": path.name,
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _intact(folder: Path, described: dict[str, Any]) -> Path:
    """Return the path of a file after checking that it is as it was written."""
    path = _inside(folder, described["name"])
    if not path.exists() or _described(path) != described:
        raise CorruptedError(f"{path} is not as it was saved: another size or checksum, or missing")
    return path
