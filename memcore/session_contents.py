"""What a session holds, to look at: its chunks as text, how often each came back, what was forgotten."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from memcore.errors import UnsupportedInputError
from memcore.options import unstructure
from memcore.session_store import SessionInfo

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from memcore.bank import MemoryBank
    from memcore.cache import MemoryCache
    from memcore.session_store import SessionStore

_KEPT: Final = 8
"""Sessions whose token ids are kept at hand."""


def summary(sessions: SessionStore, info: SessionInfo) -> dict[str, Any]:
    """Return what a session is, as plain values: the fields of its info, ``chunks`` and ``bytes``."""
    return _described(sessions.bank, info, _namespaces(info))


def layer_summary(bank: MemoryBank, layer: str, namespace: str) -> dict[str, Any]:
    """Return what a layer holds: ``layer``, ``chunks``, ``stored`` (ever), ``bytes`` and ``retrievals``."""
    usage = bank.usage(namespace)
    return {
        "layer": layer,
        "chunks": len(usage),
        "stored": bank.next_id(namespace),
        "bytes": bank.nbytes(namespace),
        "retrievals": int(usage.retrievals.sum()),
    }


def chunk_counters(bank: MemoryBank, namespaces: Mapping[str, str]) -> dict[str, Any]:
    """Return what is known of the chunks of one text, over all layers.

    Args:
        bank: where they are.
        namespaces: of each layer, by its index.

    Returns:
        ``layers``, see :func:`layer_summary`; ``retrievals`` and ``held``, of each chunk ever stored, oldest first: how
        often it came back, added up over the layers, and how many layers hold it still.
    """
    layers = [layer_summary(bank, layer, namespace) for layer, namespace in namespaces.items()]
    usages = [bank.usage(namespace) for namespace in namespaces.values()]
    # Another thread may have had the bank look at them anew in between.
    last = max((int(usage.ids[-1]) for usage in usages if len(usage)), default=-1)
    stored = max((each["stored"] for each in layers), default=0)
    retrievals, held = torch.zeros(2, max(stored, last + 1), dtype=torch.int64)
    for usage in usages:
        retrievals[usage.ids] += usage.retrievals
        held[usage.ids] += 1
    return {"layers": layers, "retrievals": retrievals.tolist(), "held": held.tolist()}


def pieces_of_text(
    tokenizer: PreTrainedTokenizerBase | None,
    token_ids: Tensor,
    sinks: int,
    chunk_size: int,
    *,
    first: int = 0,
    count: int | None = None,
) -> list[str]:
    """Return a text in the pieces in which a memory keeps it: the first tokens, then chunk by chunk.

    Args:
        tokenizer: the model's; without one the pieces are token ids, apart by spaces.
        token_ids: ``[T]`` int64, all of the text.
        sinks: how many tokens the first piece has.
        chunk_size: how many each other has, the last perhaps fewer.
        first: the first piece wanted.
        count: how many are wanted; None for all that follow.

    Raises:
        UnsupportedInputError: ``first`` or ``count`` is too small.
    """
    if first < 0 or (count is not None and count < 1):
        raise UnsupportedInputError(f"first must be at least 0 and count at least 1, got {first} and {count}")
    total = token_ids.numel()
    bounds = [0, *range(sinks, total, chunk_size), total]
    end = len(bounds) - 1 if count is None else min(len(bounds) - 1, first + count)
    pieces = [token_ids[bounds[piece] : bounds[piece + 1]] for piece in range(first, end)]
    if tokenizer is None:
        return [" ".join(map(str, piece.tolist())) for piece in pieces]
    return [str(tokenizer.decode(piece)) for piece in pieces]


def text_contents(cache: MemoryCache, *, name: str, tokens: int, model: str) -> dict[str, Any]:
    """Return of a text that was read without a session what :meth:`SessionContents.session` returns of one.

    Args:
        cache: what reading it left, of one sequence.
        name: what the text is called.
        tokens: how many it has.
        model: what the model is called.
    """
    config = cache.memory.config
    info = SessionInfo(
        name=name,
        tokens=tokens,
        model=model,
        config={"window": config.window_length, "sinks": config.sinks, "chunk_size": config.chunk_size},
    )
    layers = [layer.setup for layer in cache.memory_layers if layer.remembers]
    namespaces = {str(setup.index): setup.namespace(row) for setup in layers for row in cache.row_names}
    bank = cache.memory.bank
    return {**_described(bank, info, namespaces), **chunk_counters(bank, namespaces), "tokenizer": True}


def _namespaces(info: SessionInfo) -> dict[str, str]:
    return {layer: info.namespace(layer) for layer in info.next_ids}


def _described(bank: MemoryBank, info: SessionInfo, namespaces: Mapping[str, str]) -> dict[str, Any]:
    found = unstructure(info)
    found["chunks"] = sum(map(bank.count, namespaces.values()))
    found["bytes"] = sum(map(bank.nbytes, namespaces.values()))
    return found


class SessionContents:
    """Looks into the sessions of a memory; from any thread.

    Args:
        sessions: the sessions.
        tokenizer_of: gives a session's tokenizer, None if it is not to be had.
        only: the one session to show; None for all.

    Raises:
        UnknownSessionError: there is no session of the name ``only``.
    """

    def __init__(
        self,
        sessions: SessionStore,
        tokenizer_of: Callable[[SessionInfo], PreTrainedTokenizerBase | None],
        *,
        only: str | None = None,
    ) -> None:
        if only is not None:
            sessions.info(only)
        self._sessions = sessions
        self._tokenizer_of = tokenizer_of
        self._only = only
        self._read: OrderedDict[str, tuple[str, Tensor]] = OrderedDict()
        self._seen: dict[str, str] = {}
        self._lock = threading.Lock()

    def summaries(self) -> list[dict[str, Any]]:
        """Return what each session is, see :func:`summary`, sorted by name."""
        names = self._sessions.names() if self._only is None else [self._only]
        return [summary(self._sessions, self._latest(name)) for name in names]

    def session(self, name: str) -> dict[str, Any]:
        """Return :func:`summary` and :func:`chunk_counters` of a session, and ``tokenizer``, whether there is one.

        Chunk ``n`` begins at position ``sinks + n * chunk_size``, both of which are in ``config``.

        Raises:
            UnknownSessionError: there is none of that name.
        """
        info = self._latest(name)
        return {
            **summary(self._sessions, info),
            **chunk_counters(self._sessions.bank, _namespaces(info)),
            "tokenizer": self._tokenizer_of(info) is not None,
        }

    def text(self, name: str, first: int = 0, count: int | None = None) -> list[str]:
        """Return a session's text, or some of it, as :func:`pieces_of_text` does.

        Args:
            name: of the session.
            first: the first piece wanted; 0 for the first tokens, 1 for the first chunk.
            count: how many are wanted; None for all that follow.

        Raises:
            UnknownSessionError: there is none of that name.
            UnsupportedInputError: ``first`` or ``count`` is too small.
        """
        info = self._latest(name)
        sinks, size = (int(str(info.config[field])) for field in ("sinks", "chunk_size"))
        return pieces_of_text(self._tokenizer_of(info), self._tokens(info), sinks, size, first=first, count=count)

    def _latest(self, name: str) -> SessionInfo:
        """Return a session's info, with the bank showing what belongs to it."""
        info = self._sessions.info(name)
        with self._lock:
            if self._seen.get(name) != info.changed:
                for layer, next_id in info.next_ids.items():
                    self._sessions.bank.reload(info.namespace(layer), next_id)
                self._seen[name] = info.changed
        return info

    def _tokens(self, info: SessionInfo) -> Tensor:
        with self._lock:
            changed, read = self._read.pop(info.name, ("", torch.empty(0, dtype=torch.int64)))
            if changed != info.changed:
                from memcore.session import tokens_read  # here, as transformers takes seconds to import

                read = tokens_read(self._sessions, info.name)
            self._read[info.name] = (info.changed, read)
            while len(self._read) > _KEPT:
                self._read.popitem(last=False)
        return read
