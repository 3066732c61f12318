"""Statistics of a memory on disk: what its bytes are, and how its chunks were used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import torch

from memcore.session_contents import chunk_counters
from memcore.session_store import now, session_of
from memcore.storage import sum_of_parts

if TYPE_CHECKING:
    from memcore.session_store import SessionInfo, SessionStore

_MOST: Final = 5
"""Passages that are named as retrieved most."""


def memory_statistics(sessions: SessionStore, session: str | None = None) -> dict[str, Any]:
    """Return statistics of a memory, or of one session in it, as plain values.

    A passage is a piece of text that layers hold as chunks; its retrievals are those of its chunks added up.

    Args:
        sessions: the sessions of a memory on disk, looked at anew; it may be read-only.
        session: the name of one; None for all that the memory holds.

    Returns:
        ``session``; ``sessions``, how many these statistics are of; ``chunks``; ``tokens`` of all chunks together, None
        if the backend does not know; ``dtypes`` and ``compression``, chunks by either; ``parts``, bytes by what they
        are, and ``bytes``, their sum; of a whole memory ``fragmentation``, ``map_bytes`` and ``processes``, as
        :class:`memcore.storage.Storage` says; ``uses``, see below; and ``begun_seconds`` and ``idle_seconds``: time
        since the first session was begun, and since the last one read something, None if there is none.

        ``uses`` has ``passages`` and ``gone``, those that some layer holds and those that none does any more, evicted
        or taken back; ``retrievals``; ``never``, the share of passages that never came back; ``histogram``, how many
        passages came back ``from`` to ``to`` times; and ``most``, those that came back most: ``session``, ``start``,
        ``retrievals``.

    Raises:
        UnknownSessionError: there is no session of that name.
        BackendError: the memory cannot be read.
    """
    infos = sessions.infos() if session is None else [sessions.info(session)]
    backend = sessions.bank.persistent
    assert backend is not None
    storage = backend.storage()
    kept = [each for name, each in storage.namespaces.items() if session in (None, session_of(name))]
    tokens = [each.tokens for each in kept if each.tokens is not None]
    parts = sum_of_parts(each.parts for each in kept) if session is not None else storage.all_parts
    found: dict[str, Any] = {
        "session": session,
        "sessions": len(infos),
        "chunks": sum(each.chunks for each in kept),
        "tokens": sum(tokens) if len(tokens) == len(kept) else None,
        "dtypes": _chunks_by([(each.dtype, each.chunks) for each in kept]),
        "compression": _chunks_by([(each.compression or "unknown", each.chunks) for each in kept]),
        "parts": parts,
        "bytes": sum(parts.values()),
        "uses": _uses(sessions, infos),
        "begun_seconds": _since(min((info.created for info in infos), default=None)),
        "idle_seconds": _since(max((info.changed for info in infos), default=None)),
    }
    if session is None:
        found |= {
            "fragmentation": storage.fragmentation,
            "map_bytes": storage.map_bytes,
            "processes": storage.processes,
        }
    return found


def _chunks_by(counted: Sequence[tuple[str, int]]) -> dict[str, int]:
    chunks: Counter[str] = Counter()
    for name, count in counted:
        chunks[name] += count
    return dict(chunks)


def _uses(sessions: SessionStore, infos: Sequence[SessionInfo]) -> dict[str, Any]:
    times: Counter[int] = Counter()  # how many passages came back how often
    gone, most = 0, []
    for info in infos:
        retrievals, held = _counters(sessions, info)
        for value, count in zip(*retrievals[held > 0].unique(return_counts=True), strict=True):
            times[int(value)] += int(count)
        gone += int((held == 0).sum())
        most += _most_retrieved(sessions, info, retrievals, held)
    passages = times.total()
    return {
        "passages": passages,
        "gone": gone,
        "retrievals": sum(value * count for value, count in times.items()),
        "never": times[0] / passages if passages else 0.0,
        "histogram": _histogram(times),
        "most": sorted(most, key=lambda each: -each["retrievals"])[:_MOST],
    }


def _counters(sessions: SessionStore, info: SessionInfo) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how often each passage of a session came back, and how many layers hold it: ``[N]`` int64 each."""
    bank = sessions.bank
    namespaces = {layer: info.namespace(layer) for layer in info.next_ids}
    for layer, namespace in namespaces.items():
        bank.reload(namespace, info.next_ids[layer])
    counters = chunk_counters(bank, namespaces)
    stored = max(info.next_ids.values(), default=0)  # a writer may be ahead of what it has said of the session
    return torch.tensor(counters["retrievals"][:stored]), torch.tensor(counters["held"][:stored])


def _most_retrieved(
    sessions: SessionStore, info: SessionInfo, retrievals: torch.Tensor, held: torch.Tensor
) -> list[dict[str, Any]]:
    bank, found = sessions.bank, []
    order = retrievals.where(held > 0, 0).argsort(descending=True, stable=True)[:_MOST]
    for id in order[retrievals[order] > 0].tolist():
        holders = (info.namespace(layer) for layer in info.next_ids)
        holder = next(namespace for namespace in holders if id in bank.ids(namespace))
        (start,) = bank.fetch(holder, torch.tensor([id])).starts.tolist()
        found.append({"session": info.name, "start": start, "retrievals": int(retrievals[id])})
    return found


def _histogram(times: Counter[int]) -> list[dict[str, int]]:
    """Return how many passages came back 0, 1, 2 to 3, 4 to 7, ... times."""
    bars: list[dict[str, int]] = []
    low, high, most = 0, 0, max(times, default=-1)
    while low <= most:
        passages = sum(count for value, count in times.items() if low <= value <= high)
        bars.append({"from": low, "to": high, "passages": passages})
        low, high = high + 1, max(1, 2 * high + 1)
    return bars


def _since(moment: str | None) -> float | None:
    if moment is None:
        return None
    return max(0.0, (datetime.fromisoformat(now()) - datetime.fromisoformat(moment)).total_seconds())
