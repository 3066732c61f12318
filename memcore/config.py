"""The one configuration object: what a memory is made of and how much of it there is."""

from __future__ import annotations

import copy
import functools
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeVar

import attrs

from memcore.errors import ConfigError
from memcore.files import ENCODING, parse_json
from memcore.options import alternatives, describe, structure_options, unknown_field, unstructure

C = TypeVar("C", bound=type)

_LARGEST_FILE: Final = 1 << 20
"""Bytes of a configuration file."""

_MOST_VALUES: Final = 10_000
"""Values in a configuration file; one that YAML names again by an alias counts again."""

_WINDOW = 2048
"""Tokens of the window if nothing else is said."""

_SEGMENT = 512
"""Longest segment if nothing else is said."""

_RETRIEVED = 2048
"""Tokens of chunks that come back if nothing else is said."""

_CANDIDATES = 64
"""Least number of chunks that are compared by exact scores if nothing else is said."""


def _name(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{attribute.name} must be a name, got {describe(value)}; `memcore plugins` lists the names")


def _integer(minimum: int, otherwise: str = "") -> Callable[[object, attrs.Attribute[Any], object], None]:
    def check(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        # bool is an int, and True tokens is no length.
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise ConfigError(
                f"{attribute.name} must be an integer of at least {minimum}{otherwise}, got {describe(value)}"
            )

    return check


def _optional_integer(minimum: int, none: str) -> Callable[[object, attrs.Attribute[Any], object], None]:
    return attrs.validators.optional(_integer(minimum, f", or None for {none}"))


def _options(value: object) -> object:
    # Copied, so that a caller's later change does not reach a configuration that was validated.
    return copy.deepcopy(dict(value)) if isinstance(value, Mapping) else value


def _option_names(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{attribute.name} must be a mapping of option names to values, got {describe(value)}")


def _layers(value: object) -> object:
    return tuple(value) if isinstance(value, list | range) else value


def _layer_indices(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is None:
        return
    if (
        not isinstance(value, tuple)
        or any(isinstance(layer, bool) or not isinstance(layer, int) or layer < 0 for layer in value)
        or len(set(value)) < len(value)
    ):
        raise ConfigError(
            f"{attribute.name} must be layer indices from 0, each once, or None for every layer that can have a "
            f"memory; got {describe(value)}"
        )


def _true_or_false(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{attribute.name} must be true or false, got {describe(value)}")


def _one_of(*choices: str) -> Callable[[object, attrs.Attribute[Any], object], None]:
    def check(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value not in choices:
            raise ConfigError(f"{attribute.name} must be {alternatives(choices)}, got {describe(value)}")

    return check


def _explains_unknown_fields(cls: C) -> C:
    """Make ``cls(topk=3)`` a ConfigError that names ``top_k``, as it is in a file."""
    target: Any = cls  # __init__ of a type is nothing mypy lets one replace
    attrs_init = target.__init__
    known = {field.name for field in attrs.fields(cls)}

    @functools.wraps(attrs_init)
    def __init__(self: object, *args: object, **fields: object) -> None:  # noqa: N807
        if args:
            raise ConfigError(f"{cls.__name__} takes its fields by name, e.g. window=1024; got {describe(args[0])}")
        unknown = [unknown_field(name, known) for name in fields if name not in known]
        if unknown:
            raise ConfigError("; ".join(unknown))
        attrs_init(self, **fields)

    target.__init__ = __init__
    return cls


@_explains_unknown_fields
@attrs.frozen(kw_only=True)
class MemoryConfig:
    """How a model remembers. Immutable, hashable; ``attrs.evolve(config, top_k=4)`` makes a variant.

    All lengths are in tokens. Every problem is a :class:`~memcore.errors.ConfigError` that names the field, what it got
    and what it takes.

    Attributes:
        backend: name of the backend that holds the chunks.
        backend_options: options of that backend.
        embedder: name of the chunk embedder, which decides by what vectors a chunk is found.
        embedder_options: options of that embedder.
        eviction: name of the policy that chooses what to forget when ``capacity`` is exceeded.
        eviction_options: options of that policy.
        capacity: tokens that the memory keeps per sequence and layer; None for no limit.
        window: most recent tokens that every layer attends to directly, ``sinks`` not counted; None for 2,048, or half
            of what the model was trained for if that is less.
        sinks: first tokens of a sequence, kept in the local window for good: attention rests on them.
        chunk_size: tokens per stored chunk.
        top_k: chunks brought back per retrieval; None for 2,048 tokens of them, or fewer where the model was trained
            for too few positions.
        segment: tokens of a long input that are processed at a time, with one retrieval each; None for half the window,
            and at most 512.
        query_tokens: most recent tokens whose queries choose the chunks.
        question_tokens: tokens at the end of a long input that pass one at a time, each with a retrieval of its own: a
            question that stands there can only be understood with the chunks that it asks for itself. Training steps
            have no question.
        query_distance: distance, in tokens, at which those queries see every chunk while chunks are chosen; None for
            half the window, the middle of where retrieved keys end up.
        retrieve_every: generated tokens between two retrievals.
        positions: where retrieved keys are attended to: ``"window"``, one after the other right before the local
            window, within what the model was trained for (the paper's Continual); ``"zero"``, all at the one position
            before the window (the paper's Zero); or ``"original"``, where they once stood.
        layers: decoder layers that attend to retrieved chunks; None for every layer that can (with ``memory_layer``,
            from that one on). With none at all, ``()``, the model streams: it has its window and the sinks, no memory.
        memory_layer: None where every one of ``layers`` remembers its own keys and values and chooses for itself; or
            the layer whose keys and values, and whose choice of chunks, serve all ``layers``, as in MemLong. A model
            must be trained for that.
        gate: whether every head of ``layers`` has a learnable weight on what was retrieved, which starts without
            effect (``memory_gate``, see :mod:`memcore.gate`).
        rerank: 0 to trust the index; ``n`` to take ``n * top_k`` candidates from it and choose among them by exact
            attention scores; None for twice as many as come back, and at least 64.
    """

    backend: str = attrs.field(default="exact", validator=_name)
    backend_options: Mapping[str, object] = attrs.field(
        factory=dict, converter=_options, validator=_option_names, hash=False
    )
    embedder: str = attrs.field(default="subblock", validator=_name)
    embedder_options: Mapping[str, object] = attrs.field(
        factory=dict, converter=_options, validator=_option_names, hash=False
    )
    eviction: str = attrs.field(default="memlong", validator=_name)
    eviction_options: Mapping[str, object] = attrs.field(
        factory=dict, converter=_options, validator=_option_names, hash=False
    )
    capacity: int | None = attrs.field(default=None, validator=_optional_integer(1, "no limit"))
    window: int | None = attrs.field(default=None, validator=_optional_integer(1, "2,048"))
    sinks: int = attrs.field(default=4, validator=_integer(0))
    chunk_size: int = attrs.field(default=64, validator=_integer(1))
    top_k: int | None = attrs.field(default=None, validator=_optional_integer(1, "2,048 tokens of chunks"))
    segment: int | None = attrs.field(default=None, validator=_optional_integer(1, "half the window"))
    query_tokens: int = attrs.field(default=8, validator=_integer(1))
    question_tokens: int = attrs.field(default=32, validator=_integer(0))
    query_distance: int | None = attrs.field(default=None, validator=_optional_integer(0, "half the window"))
    retrieve_every: int = attrs.field(default=2, validator=_integer(1))
    positions: Literal["window", "zero", "original"] = attrs.field(
        default="window", validator=_one_of("window", "zero", "original")
    )
    layers: tuple[int, ...] | None = attrs.field(default=None, converter=_layers, validator=_layer_indices)
    memory_layer: int | None = attrs.field(default=None, validator=_optional_integer(0, "each layer its own"))
    gate: bool = attrs.field(default=False, validator=_true_or_false)
    rerank: int | None = attrs.field(default=None, validator=_optional_integer(0, "at least 64 candidates"))

    def __attrs_post_init__(self) -> None:
        if self.memory_layer is not None and any(layer < self.memory_layer for layer in self.layers or ()):
            raise ConfigError(
                f"layers must not lie before memory_layer ({self.memory_layer}), which chooses the chunks for them; "
                f"got {describe(self.layers)}"
            )
        if self.window_length < self.chunk_size:
            raise ConfigError(
                f"window ({self.window_length}) must hold at least one chunk: make it {self.chunk_size} or more, "
                f"or make chunk_size ({self.chunk_size}) smaller"
            )
        if self.segment_length + self.chunk_size > self.window_length:
            # A segment pushes as many tokens out, rounded up to whole chunks, and must itself fit.
            if self.segment is None:
                problem = f"window ({self.window_length}) must be at least two chunks of chunk_size ({self.chunk_size})"
                cure = f"make window {2 * self.chunk_size} or more, or chunk_size {self.window_length // 2} or less"
            else:
                problem = (
                    f"segment ({self.segment}) and one chunk of chunk_size ({self.chunk_size}) must fit into "
                    f"window ({self.window_length})"
                )
                room = self.window_length - self.chunk_size
                cure = f"make window {self.segment + self.chunk_size} or more"
                cure += f", or segment {room} or less" if room else ""
            raise ConfigError(f"{problem}: {cure}")
        if self.capacity is not None and self.capacity < self.chunk_size:
            raise ConfigError(
                f"capacity ({self.capacity}) must hold at least one chunk of chunk_size ({self.chunk_size}), "
                "or be None for no limit"
            )

    @property
    def window_length(self) -> int:
        """Most recent tokens that every layer attends to directly."""
        return _WINDOW if self.window is None else self.window

    @property
    def segment_length(self) -> int:
        """Tokens of a long input that are processed at a time."""
        return min(_SEGMENT, self.window_length // 2) if self.segment is None else self.segment

    @property
    def room(self) -> int:
        """Tokens of a text that nothing leaves for the memory: the window and the sinks."""
        return self.window_length + self.sinks

    @property
    def distance(self) -> int:
        """Distance, in tokens, at which chunks are compared with queries."""
        return self.window_length // 2 if self.query_distance is None else self.query_distance

    @property
    def chunks(self) -> int:
        """Chunks brought back per retrieval."""
        return max(1, _RETRIEVED // self.chunk_size) if self.top_k is None else self.top_k

    @property
    def candidates(self) -> int | None:
        """Chunks that are compared by exact attention scores, of which the best come back; None if none are."""
        if self.rerank is None:
            return max(2 * self.chunks, _CANDIDATES)
        return self.chunks * self.rerank or None

    @property
    def span(self) -> int:
        """The furthest that a query ever is from a key, in positions, unless ``positions`` is ``"original"``."""
        return self.room + (self.chunks * self.chunk_size if self.positions == "window" else 1)

    def fitted(self, positions: int | None) -> Self:
        """Return the configuration of a model that was trained for so many positions, with window and ``top_k`` set.

        Args:
            positions: None for any number.
        """
        window, chunks = self.window_length, self.chunks
        if self.window is None and positions is not None:
            least = self.chunk_size + (self.chunk_size if self.segment is None else self.segment)
            window = max(least, min(window, positions // 2))
        if self.top_k is None and self.positions == "window" and positions is not None:
            chunks = max(1, min(chunks, (positions - window - self.sinks) // self.chunk_size))
        return attrs.evolve(self, window=window, top_k=chunks)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Self:
        """Make a configuration from field names and values. Nothing is coerced: ``"7"`` is no integer."""
        return structure_options(cls, values)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a configuration from a ``.toml``, ``.yaml``, ``.yml`` or ``.json`` file."""
        path = Path(path)
        return structure_options(cls, read_file(path), str(path))

    @classmethod
    def from_value(
        cls, config: MemoryConfig | Mapping[str, object] | str | Path | None = None, **overrides: Any
    ) -> Self:
        """Make a configuration from whatever describes one, with some fields replaced.

        Args:
            config: a configuration, a mapping of its fields, a path of a file, or None for the defaults.
            **overrides: fields that take precedence.
        """
        if config is None:
            return cls(**overrides)
        if isinstance(config, cls):
            return attrs.evolve(config, **overrides)
        if isinstance(config, Mapping):
            return cls.from_dict({**config, **overrides})
        if isinstance(config, str | Path):
            return structure_options(cls, {**read_file(Path(config)), **overrides}, str(config))
        raise ConfigError(
            f"config must be a MemoryConfig, a mapping of its fields, or the path of a .toml, .yaml or .json file; "
            f"got {describe(config)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values; ``from_dict`` gives an equal configuration."""
        return copy.deepcopy(unstructure(self))


def read_file(path: Path) -> Mapping[str, object]:
    """Read field names and values from a ``.toml``, ``.yaml``, ``.yml`` or ``.json`` file.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    suffix = path.suffix.lower()
    if suffix not in _PARSERS:
        raise ConfigError(f"a configuration file ends in {', '.join(_PARSERS)}; got {str(path)!r}")
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path} is no file")
        if (size := path.stat().st_size) > _LARGEST_FILE:
            raise ConfigError(f"{path} has {size:,} bytes, a configuration has {_LARGEST_FILE:,} at most")
        values = _PARSERS[suffix](path.read_text(encoding=ENCODING))
        _check_size(values)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file: {error}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: {error}") from error
    if values is None:  # an empty YAML file, or one of comments: all defaults
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected field names and values, got {describe(values)}")
    return values


def _parse_yaml(text: str) -> object:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" (at line {mark.line + 1}, column {mark.column + 1})"
        raise ValueError(f"{getattr(error, 'problem', None) or error}{where}") from error
    except Exception as error:  # what makes numbers and times of texts raises KeyError, IndexError and others
        raise ValueError(f"it is no YAML: {error!r}") from error


def _check_size(values: object) -> None:
    """Raise ValueError if there is too much in a value: aliases make a few lines of YAML endless."""
    waiting, seen = [values], 0
    while waiting:
        value = waiting.pop()
        seen += 1
        if seen > _MOST_VALUES:
            raise ValueError(f"a configuration has {_MOST_VALUES:,} values at most")
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += value


_PARSERS: dict[str, Callable[[str], object]] = {
    ".toml": tomllib.loads,
    ".yaml": _parse_yaml,
    ".yml": _parse_yaml,
    ".json": parse_json,
}
