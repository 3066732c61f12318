"""A memory's configuration as the text of a TOML file."""

from __future__ import annotations

import json
import re

from memcore.config import MemoryConfig

_DEFAULTS = MemoryConfig()


def to_toml(config: MemoryConfig) -> str:
    """Return the fields that differ from the defaults as TOML, which :meth:`MemoryConfig.from_file` reads again."""
    defaults = _DEFAULTS.to_dict()
    lines = [
        f"{name} = {_value(value)}"
        for name, value in config.to_dict().items()
        # TOML has no null; where a field that may be None is None, that is its default.
        if value != defaults[name] and value is not None
    ]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else _value(name)


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(name)} = {_value(each)}" for name, each in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    # What JSON makes of strings, numbers, true and false is TOML, except that TOML escapes one character more.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
