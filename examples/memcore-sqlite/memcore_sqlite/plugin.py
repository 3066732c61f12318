"""The plugin: offers the backend by name, and imports it only when it is used."""

from __future__ import annotations

import memcore


def _load() -> type:
    from memcore_sqlite.backend import SqliteBackend

    return SqliteBackend


@memcore.hookimpl
def memcore_backends() -> list[memcore.Component]:
    """Offer the backend ``sqlite``."""
    return [memcore.Component(name="sqlite", summary="in one SQLite file, searched exhaustively", load=_load)]
