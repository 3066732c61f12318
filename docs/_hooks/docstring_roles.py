"""Docstrings refer to each other by Sphinx roles, as editors show them; the site makes links of those."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`(~?)([\w.]+)`")


class Roles(griffe.Extension):
    """Turns each role into a link to what it names if the site has it, else into plain code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring is None:
            return
        text = ROLE.sub(lambda role: _link(obj, short=bool(role[1]), name=role[2]), obj.docstring.value)
        # A block of code after a paragraph is told by its indentation alone.
        text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
        # griffe knows the section by its other name.
        obj.docstring.value = re.sub(r"^(\s*)Example:$", r"\1Examples:", text, flags=re.MULTILINE)


def _link(obj: griffe.Object, *, short: bool, name: str) -> str:
    shown = name.rpartition(".")[2] if short else name
    return f'<autoref identifier="{_path(obj, name)}" optional><code>{shown}</code></autoref>'


def _path(obj: griffe.Object, name: str) -> str:
    """Return the path of what a role names: it may stand in full, or be a name beside or inside of the object."""
    scope: griffe.Object | None = obj
    while scope is not None and not name.startswith("memcore."):
        if name.partition(".")[0] in scope.members:
            return f"{scope.path}.{name}"
        scope = scope.parent
    return name
