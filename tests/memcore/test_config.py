"""MemoryConfig: what it accepts, what it refuses and how it says so, and that files and keywords agree."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from memcore.config import MemoryConfig
from memcore.errors import ConfigError
from memcore.options import structure_options

VARIANT: dict[str, Any] = {
    "backend": "hnswlib",
    "backend_options": {"ef": 64, "nested": {"deep": [1, 2]}},
    "capacity": 4096,
    "window": 512,
    "segment": 128,
    "positions": "original",
    "layers": [1, 3],
    "rerank": 4,
}


def test_defaults_are_valid() -> None:
    config = MemoryConfig()
    assert (config.window_length, config.segment_length, config.distance) == (2048, 512, 1024)
    assert (config.chunks, config.candidates, config.span) == (32, 64, 2048 + 4 + 2048)


def test_a_segment_is_half_of_a_small_window() -> None:
    assert MemoryConfig(window=600).segment_length == 300


def test_segment_overrides_half_the_window() -> None:
    assert MemoryConfig(window=1024, segment=100).segment_length == 100


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"top_k": 0}, "top_k must be an integer of at least 1, or None for 2,048 tokens of chunks, got 0"),
        ({"top_k": "7"}, "top_k must be an integer"),
        ({"top_k": 1.7}, "top_k must be an integer"),
        ({"top_k": True}, "top_k must be an integer"),
        ({"sinks": -1}, "sinks must be an integer of at least 0, got -1"),
        ({"rerank": -1}, "rerank must be an integer of at least 0, or None for at least 64 candidates, got -1"),
        ({"window": 32}, r"window \(32\) must hold at least one chunk: make it 64 or more"),
        ({"window": 100}, "make window 128 or more, or chunk_size 50 or less"),
        ({"segment": 2000}, "make window 2064 or more, or segment 1984 or less"),
        ({"segment": 0}, "segment must be an integer of at least 1, or None for half the window"),
        ({"capacity": 63}, r"capacity \(63\) must hold at least one chunk"),
        ({"capacity": "all"}, "capacity must be an integer of at least 1, or None for no limit, got 'all'"),
        ({"positions": "absolute"}, "positions must be 'window', 'zero' or 'original', got 'absolute'"),
        ({"gate": 1}, "gate must be true or false, got 1"),
        ({"memory_layer": -1}, "memory_layer must be an integer of at least 0, or None for each layer its own, got -1"),
        ({"memory_layer": 5, "layers": [4, 6]}, r"layers must not lie before memory_layer \(5\).*got \(4, 6\)"),
        ({"layers": 3}, "layers must be layer indices"),
        ({"layers": [1, 1]}, "layers must be layer indices"),
        ({"layers": [-1]}, "layers must be layer indices"),
        ({"backend": ""}, "backend must be a name"),
        ({"backend_options": [1]}, "backend_options must be a mapping"),
        ({"topk": 3}, "unknown field 'topk', did you mean 'top_k'?"),
        ({"chunksize": 3}, "did you mean 'chunk_size'?"),
    ],
)
def test_bad_fields_are_refused_by_name_and_value(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        MemoryConfig(**fields)
    with pytest.raises(ConfigError, match=says):
        attrs.evolve(MemoryConfig(), **fields)
    with pytest.raises(ConfigError, match=f"^{next(iter(fields))} |{says}"):
        MemoryConfig.from_dict(fields)


def test_every_problem_of_a_mapping_is_in_one_message() -> None:
    with pytest.raises(ConfigError, match=r"top_k .*positions .*unknown field 'windo', did you mean 'window'"):
        MemoryConfig.from_dict({"top_k": "7", "positions": 1, "windo": 3})


def test_options_are_copied() -> None:
    options = {"ef": [1]}
    config = MemoryConfig(backend_options=options)
    options["ef"].append(2)
    assert config.backend_options == {"ef": [1]}


def test_it_is_immutable_and_hashable() -> None:
    config = MemoryConfig()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        config.top_k = 3  # type: ignore[misc]
    assert hash(config) == hash(MemoryConfig())


def test_deepcopy_is_equal() -> None:
    config = MemoryConfig(**VARIANT)
    assert copy.deepcopy(config) == config


@given(
    chunk_size=st.integers(1, 100),
    spare=st.integers(0, 500),
    top_k=st.integers(1, 64),
    layers=st.none() | st.sets(st.integers(0, 80), min_size=1).map(sorted),
    positions=st.sampled_from(["window", "zero", "original"]),
)
def test_dict_round_trip(chunk_size: int, spare: int, top_k: int, layers: Any, positions: Any) -> None:
    config = MemoryConfig(
        chunk_size=chunk_size, window=2 * chunk_size + spare, top_k=top_k, layers=layers, positions=positions
    )
    plain = json.loads(json.dumps(config.to_dict()))
    assert MemoryConfig.from_dict(plain) == config


TOML = """
backend = "hnswlib"
capacity = 4096
window = 512
segment = 128
positions = "original"
layers = [1, 3]
rerank = 4

[backend_options]
ef = 64
nested = { deep = [1, 2] }
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("memory.toml", TOML),
        ("memory.yaml", yaml.safe_dump(VARIANT)),
        ("memory.YML", yaml.safe_dump(VARIANT)),
        ("memory.json", json.dumps(VARIANT)),
    ],
)
@pytest.mark.parametrize("as_path", [True, False])
def test_every_format_gives_the_same(tmp_path: Path, name: str, text: str, as_path: bool) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert MemoryConfig.from_value(path if as_path else str(path)) == MemoryConfig(**VARIANT)


def test_empty_yaml_gives_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "memory.yaml").write_text("# nothing yet\n")
    assert MemoryConfig.from_file(tmp_path / "memory.yaml") == MemoryConfig()


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.toml", "top_k = ", "a.toml: "),
        ("a.toml", 'top_k = "7"', "a.toml: top_k must be an integer, got '7'"),
        ("a.json", "{", "a.json: "),
        ("a.json", "[1]", "expected field names and values"),
        ("a.yaml", "top_k: [", "a.yaml: "),
        ("a.yaml", "top_k: !!python/object/apply:os.getcwd []", "a.yaml: "),
        ("a.yaml", "top_k: 3\nwindw: 4", "did you mean 'window'"),
        ("a.ini", "top_k=3", r"ends in \.toml, \.yaml, \.yml, \.json; got"),
        ("a.toml", b"top_k = 3 # \xff", "a.toml: "),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path: Path, name: str, text: str | bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=says):
        MemoryConfig.from_file(path)


def test_a_missing_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration file"):
        MemoryConfig.from_file(tmp_path / "none.toml")


def test_overrides_take_precedence_over_everything(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"top_k": 3, "window": 256}')
    for config in (None, {"top_k": 3}, MemoryConfig(top_k=3), tmp_path / "a.json"):
        assert MemoryConfig.from_value(config, top_k=5).top_k == 5


def test_overrides_are_there_before_a_configuration_is_judged(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("window = 64")  # no room for a segment and a chunk of 64
    with pytest.raises(ConfigError, match=r"a\.toml"):
        MemoryConfig.from_file(tmp_path / "a.toml")
    assert MemoryConfig.from_value(tmp_path / "a.toml", chunk_size=16) == MemoryConfig(window=64, chunk_size=16)


def test_a_file_may_begin_with_the_mark_that_windows_writes(tmp_path: Path) -> None:
    for name, text in (("a.toml", "window = 512"), ("a.json", '{"window": 512}'), ("a.yaml", "window: 512")):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert MemoryConfig.from_file(tmp_path / name).window == 512


def test_what_describes_no_configuration_is_refused() -> None:
    with pytest.raises(ConfigError, match="config must be a MemoryConfig"):
        MemoryConfig.from_value(3)  # type: ignore[arg-type]


@attrs.frozen(kw_only=True)
class Inner:
    depth: int = 1


@attrs.frozen(kw_only=True)
class Options:
    path: Path
    ef: int = attrs.field(default=10, validator=attrs.validators.ge(1))
    ratio: float = 0.5
    exact: bool = False
    metric: Literal["ip", "l2"] = "ip"
    names: tuple[str, ...] = ()
    table: Mapping[str, int] = attrs.field(factory=dict)
    inner: Inner = Inner()
    limit: int | None = None


def test_options_of_a_component_are_structured() -> None:
    options = structure_options(
        Options, {"path": "x", "ratio": 1, "names": ["a"], "inner": {"depth": 3}, "limit": None}, "here"
    )
    assert options == Options(path=Path("x"), ratio=1.0, names=("a",), inner=Inner(depth=3))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "here: path is required"),
        ({"path": 3}, "here: path must be a path, got 3"),
        ({"path": "x", "ef": "7"}, "here: ef must be an integer, got '7'"),
        ({"path": "x", "ef": True}, "here: ef must be an integer, got True"),
        ({"path": "x", "ef": 0}, "here: .*ef"),
        ({"path": "x", "ratio": "half"}, "here: ratio must be a number, got 'half'"),
        ({"path": "x", "exact": 1}, "here: exact must be true or false, got 1"),
        ({"path": "x", "exact": "false"}, "here: exact must be true or false, got 'false'"),
        ({"path": "x", "metric": "cosine"}, "here: metric must be 'ip' or 'l2', got 'cosine'"),
        ({"path": "x", "names": "abc"}, "here: names must be a list, got 'abc'"),
        ({"path": "x", "names": ["a", 3]}, r"here: names\[1\] must be a string, got 3"),
        ({"path": "x", "table": [1]}, "here: table must be a mapping, got"),
        ({"path": "x", "table": {"a": "1"}}, r"here: table\[a\] must be an integer, got '1'"),
        ({"path": "x", "inner": 3}, "here: inner must be a mapping of field names to values, got 3"),
        ({"path": "x", "inner": {"dept": 3}}, "here: inner: unknown field 'dept', did you mean 'depth'"),
        ({"path": "x", "inner": {"depth": 1.0}}, "here: inner.depth must be an integer, got 1.0"),
        ({"path": "x", "limit": 1.5}, "here: limit must be an integer, got 1.5"),
        ({"pat": "x"}, "unknown field 'pat', did you mean 'path'"),
    ],
)
def test_options_are_never_coerced(values: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        structure_options(Options, values, "here")


def test_options_that_are_no_mapping_are_refused() -> None:
    with pytest.raises(ConfigError, match="here: expected a mapping"):
        structure_options(Options, 3, "here")  # type: ignore[arg-type]


def test_a_field_is_checked_the_second_time_as_it_was_the_first() -> None:
    for _ in range(3):
        with pytest.raises(ConfigError, match=r"^backend_options must be a mapping, got"):
            MemoryConfig.from_dict({"backend_options": [1]})
        assert MemoryConfig.from_dict({"backend_options": {"a": {"b": [1]}}}).backend_options == {"a": {"b": [1]}}
