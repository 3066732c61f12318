"""How what is known of a namespace's chunks is written down beside them, so that counters outlive the process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from memcore.errors import CorruptedError
from memcore.view import Shelf, View

_PREFIX: Final = "usage/"

_LARGEST: Final = 1 << 62
"""Ids and clocks stay below it, and have room to go on."""


def record_name(namespace: str) -> str:
    """Return the name of the record that belongs to a namespace."""
    return f"{_PREFIX}{namespace}"


def recorded(names: Iterable[str]) -> set[str]:
    """Return the namespaces that have a record among records of these names."""
    return {name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX)}


def pack(view: View, clock: int) -> bytes:
    """Write a view of one shelf as safetensors."""
    last_used, retrievals = view.usage[:, : len(view)]
    (shelf,) = view.parts
    held = shelf.backend.ids(shelf.name)  # with those that this view has forgotten and another still reads
    highest = int(held[-1]) if held.numel() else -1
    return save(
        {
            "ids": view.ids.contiguous(),
            "backend_ids": view.backend_ids.contiguous(),
            "last_used": last_used.contiguous(),
            "retrievals": retrievals.contiguous(),
            "next_id_clock_highest": torch.tensor([view.next_id, clock, highest]),
        }
    )


def _check(held: Mapping[str, Tensor]) -> None:
    """Raise ValueError or KeyError unless these are tensors as :func:`pack` writes them."""
    numbers = held["next_id_clock_highest"]
    if numbers.dtype != torch.int64 or numbers.shape != (3,):
        raise ValueError("next id, clock and highest id must be three int64")
    next_id, clock, _ = numbers.tolist()
    if not 0 <= clock < _LARGEST:
        raise ValueError(f"the clock is {clock}")
    uses = (held["last_used"], held["retrievals"])
    check_uses(held["ids"], uses, next_id)
    check_uses(held["backend_ids"], uses, _LARGEST)


def check_uses(ids: Tensor, uses: Sequence[Tensor], next_id: int) -> None:
    """Raise ValueError unless ids are ``[N]`` int64, ascending, from 0 to below ``next_id``, and uses are as many."""
    if any(each.dtype != torch.int64 or each.shape != (ids.numel(),) for each in (ids, *uses)):
        raise ValueError(f"ids and uses must be int64 [N], got {[list(each.shape) for each in (ids, *uses)]}")
    in_order = not len(ids) or (int(ids[0]) >= 0 and bool((ids.diff() > 0).all()) and int(ids[-1]) < next_id)
    if not in_order or not 0 <= next_id <= _LARGEST:
        raise ValueError(f"ids must be in order, each once, and less than the next one, {next_id}")


def unpack(record: bytes | None, backend_ids: Tensor, shelf: Shelf) -> tuple[View, int, Tensor]:
    """Make the view of a shelf from its record and from what the backend holds.

    The backend may be ahead of the record, if it committed more before a crash: chunks with larger ids are taken in as
    not used yet. Chunks that the record's view had forgotten while others still read them are to go.

    Args:
        record: what :func:`pack` wrote; None if nothing was.
        backend_ids: ``[N]`` int64, ascending: what the backend holds.
        shelf: where that is.

    Returns:
        The view, the bank's clock when it was written, and the backend ids that nobody knows any more.

    Raises:
        CorruptedError: the record is not one.
    """
    view = View.empty()
    view.parts = [shelf]
    if record is None:
        view.ids, view.backend_ids = backend_ids.clone(), backend_ids  # safetensors takes nothing twice
        view.part = torch.zeros_like(backend_ids)
        view.usage = torch.zeros(2, backend_ids.numel(), dtype=torch.int64)
        view.next_id = int(backend_ids[-1]) + 1 if backend_ids.numel() else 0
        return view, 0, backend_ids[:0]
    try:
        held = load(record)
        _check(held)
        next_id, clock, highest = held["next_id_clock_highest"].tolist()
        there = torch.isin(held["backend_ids"], backend_ids)
        view.ids, view.backend_ids = held["ids"][there], held["backend_ids"][there]
        view.usage = torch.stack((held["last_used"][there], held["retrievals"][there]))
    except (SafetensorError, KeyError, ValueError) as error:
        raise CorruptedError(f"the record of uses of namespace {shelf.name!r} cannot be read: {error}") from error
    view.part = torch.zeros_like(view.ids)
    view.next_id = next_id
    later = backend_ids > highest
    view.add(backend_ids[later], clock)
    view.changed = bool(later.any()) or not bool(there.all())
    forgotten = backend_ids[~later & ~torch.isin(backend_ids, view.backend_ids)]
    return view, clock, forgotten
