"""A look into the columns of an in-memory backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from memcore.in_memory import InMemoryBackend


def payload_in_table(backend: InMemoryBackend, namespace: str, id: int) -> tuple[Tensor, Tensor]:
    """Return keys ``[H, L, D]`` and values ``[H, L, Dv]`` of one chunk, read from the columns of its namespace."""
    table = backend._namespaces[namespace].table
    row = table.ids.tolist().index(id)
    slot, length = int(table._columns["slots"][row]), int(table._columns["lengths"][row])
    block, place = table._payload._blocks[slot // table._payload._per_block], slot % table._payload._per_block
    keys, values = (block[name][place, :, :length] for name in ("keys", "values"))
    if table.compression == "int8":
        assert table._dtype is not None
        keys = keys * block["key_scales"][place, :, None] + block["key_offsets"][place, :, None]
        values = values * block["value_scales"][place, :, :length, None]
        values = values + block["value_offsets"][place, :, :length, None]
        return keys.to(table._dtype), values.to(table._dtype)
    return keys, values
