"""Configurations of a memory and of a training, as TOML, YAML and JSON."""

from __future__ import annotations

import json

import yaml

from fuzz.target import Target, refused
from memcore.config import MemoryConfig
from memcore.training.configuration import TrainingConfig

_SUFFIXES = (".toml", ".yaml", ".json")


class Configurations(Target):
    """Reads a file as both. The first byte chooses the suffix."""

    def seeds(self) -> list[bytes]:
        """Return all fields, and all of a training, in the three languages."""
        training = {
            "model": "m",
            "documents": ["a.txt"],
            "output": "out",
            "memory": {
                "window": 64,
                "chunk_size": 16,
                "layers": [1, 2],
                "backend_options": {"path": "x", "sync": True},
            },
            "stages": [{"name": "one", "plan": {"lora_rank": 4}, "steps": 3, "learning_rate": 1e-3}],
        }
        memory = {name: value for name, value in MemoryConfig().to_dict().items() if value is not None}
        toml = b'window = 64\nchunk_size = 16\nlayers = [0, 1]\nbackend_options = {path = "x"}\n'
        texts = [json.dumps(training), json.dumps(memory)]
        anchored = b"backend_options: &a {path: x}\nembedder_options: *a\nwindow: 0x10\ncapacity: 1_000\n"
        return [
            b"\0" + toml,
            b"\1" + anchored,
            *(b"\1" + yaml.safe_dump(json.loads(text)).encode() for text in texts),
            *(b"\2" + text.encode() for text in texts),
        ]

    def read(self, data: bytes) -> None:
        """Read a file."""
        if not data:
            return
        file = self.folder / f"config{_SUFFIXES[data[0] % len(_SUFFIXES)]}"
        file.write_bytes(data[1:])

        def memory() -> None:
            config = MemoryConfig.from_file(file)
            assert MemoryConfig.from_dict(config.to_dict()) == config
            config.fitted(4096)

        refused(memory)
        refused(lambda: TrainingConfig.from_file(file))
