from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from memcore import MemoryConfig
from memcore.cli.settings import memory_config
from memcore.errors import ConfigError

FIELDS: dict[str, Any] = {
    "backend": "lmdb",
    "backend_options": {"path": "memory", "read_only": True},
    "window": 256,
    "layers": [0, 2],
    "capacity": None,
}
TOML = 'backend = "lmdb"\nwindow = 256\nlayers = [0, 2]\n[backend_options]\npath = "memory"\nread_only = true\n'
YAML = "backend: lmdb\nwindow: 256\nlayers: [0, 2]\ncapacity: null\nbackend_options: {path: memory, read_only: true}\n"
JSON = (
    '{"backend": "lmdb", "window": 256, "layers": [0, 2], "capacity": null, '
    '"backend_options": {"path": "memory", "read_only": true}}'
)


@pytest.mark.parametrize(("suffix", "text"), [("toml", TOML), ("yaml", YAML), ("yml", YAML), ("json", JSON)])
def test_a_file_keyword_arguments_and_the_command_line_say_the_same(tmp_path: Path, suffix: str, text: str) -> None:
    file = tmp_path / f"memory.{suffix}"
    file.write_text(text)
    given = [
        "backend=lmdb",
        "window=256",
        "layers=[0, 2]",
        "capacity=null",
        "backend_options.path=memory",
        "backend_options.read_only=true",
    ]
    expected = MemoryConfig.from_dict(FIELDS)
    assert MemoryConfig.from_file(file) == expected
    assert MemoryConfig.from_value(**FIELDS) == expected
    assert memory_config(str(file)) == expected
    assert memory_config("", given) == expected


def test_what_is_given_beside_a_file_takes_precedence(tmp_path: Path) -> None:
    (tmp_path / "memory.toml").write_text(TOML)
    made = memory_config(str(tmp_path / "memory.toml"), ["backend_options.path=/else where"], window=512, top_k=None)
    assert made.window == 512
    assert made.backend_options == {"path": "/else where", "read_only": True}
    assert made.layers == (0, 2)


def test_what_is_given_beside_a_file_is_there_before_the_file_is_judged(tmp_path: Path) -> None:
    (tmp_path / "memory.toml").write_text("window = 64")  # no room for a segment and a chunk of 64
    assert memory_config(str(tmp_path / "memory.toml"), ["chunk_size=16"]).window == 64


def test_what_is_wrong_with_a_file_is_said_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "memory.yaml"
    for text, says in (("backend_options:", "backend_options must be a mapping"), ("window: wide", "window must be")):
        file.write_text(text)
        with pytest.raises(ConfigError, match=rf"memory\.yaml: {says}"):
            memory_config(str(file), path="elsewhere", read_only=True)
    file.write_text("window: 512")
    with pytest.raises(ConfigError, match=r"^top_k must be"):
        memory_config(str(file), ["top_k=0"])


def test_a_path_means_a_memory_on_disk() -> None:
    made = memory_config("", path="memory", read_only=True)
    assert (made.backend, made.backend_options) == ("lmdb", {"path": "memory", "read_only": True})
    assert memory_config("", path="memory", backend="sqlite").backend == "sqlite"


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("window", "FIELD=VALUE"),
        ("=3", "FIELD=VALUE"),
        ("windw=3", "unknown field 'windw', did you mean 'window'"),
        ("window=big", "window"),
        ("window.size=3", "window"),
        ("backend_options=3", "backend_options"),
        ("backend_options=null", "backend_options"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(setting: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        memory_config("", [setting], read_only=True)
