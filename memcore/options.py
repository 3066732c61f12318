"""Strict structuring: mappings from files and keyword arguments into attrs classes, with nothing coerced.

cattrs on its own turns ``"7"`` into 7 and 1.7 into 1. Here a value has the type its field declares, or it is an error
that names the field, what was given and what the field takes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import attrs
import cattrs
from attrs.validators import and_, ge, instance_of, le
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError
from cattrs.strategies import configure_union_passthrough

from memcore.errors import ConfigError

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class NoOptions:
    """Options of a component that has none."""


def structure_options(cls: type[T], values: Mapping[str, object], where: str = "") -> T:
    """Make an instance of an attrs class from a mapping, strictly.

    Args:
        cls: an attrs class, such as the ``Options`` of a backend or an embedder.
        values: field names and values. Nested attrs classes are given as mappings, tuples as any list.
        where: what the values are, to begin every message with, e.g. ``"backend_options of 'hnswlib'"``.

    Raises:
        ConfigError: a field is unknown, missing, of another type, or not accepted by its validator. All problems
            found are in the one message.
    """
    prefix = f"{where}: " if where else ""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix}expected a mapping of field names to values, got {describe(values)}")
    try:
        return _converter.structure(values, cls)
    except Exception as error:
        # A validator may raise anything, and cattrs packs several errors in one group.
        raise ConfigError(prefix + "; ".join(_messages(error))) from error


def unstructure(instance: object) -> dict[str, Any]:
    """Turn an attrs instance into plain dictionaries, lists and scalars that any file format can hold."""
    plain = _converter.unstructure(instance)
    assert isinstance(plain, dict)
    return plain


def unknown_field(name: str, known: Iterable[str]) -> str:
    """Return the message for a field that does not exist, with the nearest name there is."""
    known = sorted(known)
    return f"unknown field {name!r}{nearest(name, known)} (the fields are {', '.join(known) or 'none'})"


def alternatives(choices: Sequence[object]) -> str:
    """Return ``"'a', 'b' or 'c'"``."""
    *first, last = map(repr, choices)
    return f"{', '.join(first)} or {last}" if first else last


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``", did you mean 'x'?"`` for the most similar known name, or nothing."""
    matches = difflib.get_close_matches(name.lower().replace("-", "_"), list(known), n=1, cutoff=0.5)
    return f", did you mean {matches[0]!r}?" if matches else ""


def describe(value: object) -> str:
    """Return a value and its type for an error message, shortened."""
    text = repr(value)
    if len(text) > 60:
        text = text[:57] + "..."
    return f"{text} ({type(value).__name__})"


def whole(at_least: int, at_most: int | None = None) -> Any:
    """Return a validator of attrs for a field of an options class that holds a whole number.

    Args:
        at_least: the smallest that it accepts.
        at_most: the largest; None for any.
    """
    return and_(instance_of(int), ge(at_least), *(() if at_most is None else (le(at_most),)))


class _WrongTypeError(ValueError):
    """A value of another type than its field declares."""


def _exactly(kind: type, expected: str) -> Callable[[object, object], object]:
    def check(value: object, _: object) -> object:
        if type(value) is not kind:
            raise _WrongTypeError(f"must be {expected}, got {describe(value)}")
        return value

    return check


def _float(value: object, _: object) -> float:
    # A whole number is written without a point, and loses nothing.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _WrongTypeError(f"must be a number, got {describe(value)}")
    return float(value)


def _path(value: object, _: object) -> Path:
    if not isinstance(value, str | Path):
        raise _WrongTypeError(f"must be a path, got {describe(value)}")
    return Path(value)


def _is_literal(kind: Any) -> bool:
    origin: object = get_origin(kind)
    return origin is Literal


def _literal(value: object, kind: Any) -> object:
    for choice in get_args(kind):
        if type(value) is type(choice) and value == choice:
            return value
    raise _WrongTypeError(f"must be {alternatives(get_args(kind))}, got {describe(value)}")


def _is(kind: Any, *bases: type) -> bool:
    origin = get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, bases)


def _guard(
    converter: cattrs.Converter, guards: Callable[[Any], bool], allowed: tuple[type, ...], expected: str
) -> None:
    """Refuse values that are not ``allowed`` for the kinds of field it guards, and leave the rest to cattrs."""
    resolving: list[object] = []  # kinds whose own hook is being looked up, which must not be this guard again

    def accepts(kind: Any) -> bool:
        return kind not in resolving and guards(kind)

    def factory(kind: Any) -> Callable[[object, Any], object]:
        resolving.append(kind)
        try:
            # From a copy: for some kinds cattrs would remember the hook, and use it in place of the guard from then on.
            inner = converter.copy().get_structure_hook(kind, cache_result=False)
        finally:
            resolving.pop()

        def check(value: object, target: Any) -> object:
            if not isinstance(value, allowed):
                raise _WrongTypeError(f"must be {expected}, got {describe(value)}")
            return inner(value, target)

        return check

    converter.register_structure_hook_factory(accepts, factory)


def _strict_converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    configure_union_passthrough(int | float | str | bool | None, converter)
    converter.register_structure_hook(int, _exactly(int, "an integer"))
    converter.register_structure_hook(str, _exactly(str, "a string"))
    converter.register_structure_hook(bool, _exactly(bool, "true or false"))
    converter.register_structure_hook(float, _float)
    converter.register_structure_hook(Path, _path)

    converter.register_structure_hook_func(_is_literal, _literal)
    converter.register_structure_hook_func(lambda kind: kind is object, lambda value, _: value)
    # cattrs iterates over whatever it is given: "abc" would become ("a", "b", "c").
    _guard(converter, lambda kind: _is(kind, Sequence, Set), (list, tuple, set, frozenset), "a list")
    _guard(converter, lambda kind: _is(kind, Mapping), (Mapping,), "a mapping")
    _guard(converter, attrs.has, (Mapping,), "a mapping of field names to values")
    converter.register_unstructure_hook(Path, str)
    # Of an `object` cattrs would look at the declared type only, and leave a path in a mapping of options as it is.
    converter.register_unstructure_hook_func(
        lambda kind: kind is object, lambda value: converter.unstructure(value, unstructure_as=type(value))
    )
    return converter


def _messages(error: BaseException, path: str = "") -> Iterator[str]:
    """Yield one message per problem inside a cattrs error, each beginning with the field's path."""
    if isinstance(error, ClassValidationError):
        for inner, attribute in error.group_exceptions()[0]:
            yield from _messages(inner, f"{path}.{attribute.name}" if path else attribute.name)
        for inner in error.group_exceptions()[1]:
            yield from _messages(inner, path)
    elif isinstance(error, IterableValidationError):
        for inner, element in error.group_exceptions()[0]:
            yield from _messages(inner, f"{path}[{element.index}]")
        for inner in error.group_exceptions()[1]:
            yield from _messages(inner, path)
    elif isinstance(error, ForbiddenExtraKeysError):
        known = [field.name for field in attrs.fields(error.cl)]
        for name in sorted(map(str, error.extra_fields)):
            yield f"{path}: {unknown_field(name, known)}" if path else unknown_field(name, known)
    elif isinstance(error, KeyError) and path:
        yield f"{path} is required"
    else:
        # attrs' own validators put the attribute and the value behind the message.
        text = str(error.args[0]) if error.args else type(error).__name__
        if isinstance(error, _WrongTypeError):
            yield f"{path} {text}"
        else:
            yield f"{path}: {text}" if path else text


_converter = _strict_converter()
