"""A look into the columns of an in-memory backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from memcore.in_memory import InMemoryBackend


def payload_in_table(backend: InMemoryBackend, namespace: str, id: int) -> tuple[Tensor, Tensor]:
    """Return keys ``[H, L, D]`` and values ``[H, L, Dv]`` of one chunk, read from the columns of its namespace."""
    table = backend._namespaces[namespace].table
    row = table._ids.tolist().index(id)
    length = int(table._columns["lengths"][row])
    return table._columns["keys"][row, :, :length], table._columns["values"][row, :, :length]
