"""A folder of the ``hnswlib`` backend whose checksums fit: the manifest, the chunks, a graph that leads anywhere."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import torch
from memcore_hnswlib.backend import HnswlibBackend
from memcore_hnswlib.options import HnswlibOptions

from fuzz.target import Target, refused
from memcore.testing import make_chunks
from memcore.testing.chunks import random_queries

_M = 3


class Graphs(Target):
    """Puts a file in the place of another, and uses the memory. The first byte chooses the file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._seed = folder / "seed"
        with self._open(self._seed) as backend:
            ids = backend.store("a", make_chunks(40))
            backend.retrieve("a", random_queries(1), 2)
            backend.evict("a", ids[::5])
        self._manifest = json.loads((self._seed / "manifest.json").read_text())
        held = self._seed / self._manifest["files"]
        self._files = [self._seed / "manifest.json", held / "0.safetensors", held / "0.hnswlib"]

    def seeds(self) -> list[bytes]:
        """Return the files of a small memory."""
        return [bytes([place]) + file.read_bytes() for place, file in enumerate(self._files)]

    def read(self, data: bytes) -> None:
        """Use a memory with one file replaced."""
        if not data:
            return
        folder = self.folder / "memory"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._seed, folder)
        file = folder / self._files[data[0] % len(self._files)].relative_to(self._seed)
        file.write_bytes(data[1:])
        if file.name != "manifest.json":
            manifest = json.loads(json.dumps(self._manifest))
            (record,) = manifest["namespaces"]
            said = record["chunks"] if file.suffix == ".safetensors" else record["graph"]["file"]
            said |= {"bytes": len(data) - 1, "sha256": hashlib.sha256(data[1:]).hexdigest()}
            (folder / "manifest.json").write_text(json.dumps(manifest))
        opened: list[HnswlibBackend] = []
        if refused(lambda: opened.append(self._open(folder))):
            return
        (backend,) = opened
        for name in backend.namespaces():
            refused(lambda name=name: backend.fetch(name, backend.ids(name)[-3:]))  # type: ignore[misc]
            refused(lambda name=name: backend.retrieve(name, random_queries(3), 3))  # type: ignore[misc]
            refused(lambda name=name: backend.store(name, make_chunks(12)))  # type: ignore[misc]
            refused(lambda name=name: backend.retrieve(name, random_queries(3), 3))  # type: ignore[misc]
            refused(lambda name=name: backend.evict(name, backend.ids(name)[:4]))  # type: ignore[misc]
        refused(backend.close)
        assert torch.is_grad_enabled()

    @staticmethod
    def _open(folder: Path) -> HnswlibBackend:
        return HnswlibBackend(HnswlibOptions(path=folder, exact_below=0, M=_M))
