"""The catalogue of named sessions in a memory bank: what each is, and the state it is in."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import attrs
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from memcore import events
from memcore.errors import BackendError, ConfigError, CorruptedError, SessionError, UnknownSessionError
from memcore.files import parse_json
from memcore.options import describe, nearest, structure_options, unstructure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from memcore.bank import MemoryBank

_INFO: Final = "session/"
_STATE: Final = "session-state/"

_ROW: Final = "session/"
"""Begins the name of a session's row in caches, and so those of its namespaces."""

_COPYING: Final = "session-copy/"
"""Begins the name of the record that is there while a session of that name is being made as a copy of another."""

_LARGEST: Final = 1 << 62
"""Numbers of tokens and chunks stay below it."""

_INFO_TENSOR: Final = "info"
"""The session's info as JSON, uint8, in the record of its state: a backend may commit the two records one by one."""


@attrs.frozen(kw_only=True)
class Unfinished:
    """A text that a session has read only in part.

    Attributes:
        digest: SHA-256 of its token ids.
        tokens: tokens of the whole text.
        done: tokens read of it.
    """

    digest: str
    tokens: int
    done: int


@attrs.frozen(kw_only=True)
class SessionInfo:
    """What a named session is.

    Attributes:
        name: its name.
        tokens: tokens it has read.
        created: when it was begun, UTC, ISO 8601.
        changed: when it last read something.
        model: name or path of the model it was made with.
        model_fingerprint: see :func:`memcore.fingerprint.model_fingerprint`.
        tokenizer_fingerprint: see :func:`memcore.fingerprint.tokenizer_fingerprint`; empty if it was only ever given
            token ids.
        config: the fields of the memory configuration that what is stored depends on.
        next_ids: for each layer with a memory, by its index, the id that its next chunk will get.
        unfinished: the text it was reading when it was interrupted; None if there is none.
    """

    name: str
    tokens: int = 0
    created: str = attrs.field(factory=lambda: now())
    changed: str = attrs.field(factory=lambda: now())
    model: str = ""
    model_fingerprint: str = ""
    tokenizer_fingerprint: str = ""
    config: dict[str, object] = attrs.field(factory=dict)
    next_ids: dict[str, int] = attrs.field(factory=dict)
    unfinished: Unfinished | None = None

    @property
    def row_name(self) -> str:
        """The name of its row in caches."""
        return f"{_ROW}{self.name}"

    def namespace(self, layer: int | str) -> str:
        """Return the bank's namespace of one of its layers."""
        return layer_namespace(self.row_name, layer)


def layer_namespace(row_name: str, layer: int | str) -> str:
    """Return the bank's namespace of one layer of a row."""
    return f"{row_name}/layer{layer}"


def session_of(namespace: str) -> str | None:
    """Return the name of the session that one of the bank's namespaces belongs to, None if it is of none."""
    row_name, _, layer = namespace.rpartition("/layer")
    return row_name.removeprefix(_ROW) if row_name.startswith(_ROW) and layer.isdecimal() else None


def now() -> str:
    """Return the time, UTC, ISO 8601 to the microsecond."""
    return datetime.now(UTC).isoformat()


def check_name(name: object) -> str:
    """Return a session's name, or raise ConfigError if it is none."""
    if not isinstance(name, str) or not name:
        raise ConfigError(f"a session's name must be a text that is not empty, got {describe(name)}")
    return name


class SessionStore:
    """The sessions in a bank. With a persistent backend they are there again in the next process.

    What a copy that was cut short has left is dropped at the beginning, if the backend can be written to.

    Args:
        bank: where their chunks are.
    """

    def __init__(self, bank: MemoryBank) -> None:
        self.bank = bank
        self._records = bank.records
        if not bank.read_only:
            left = [name for name in self._records.names() if name.startswith(_COPYING)]
            for name in left:
                self._undo_copy(name.removeprefix(_COPYING))
                events.SESSION_COPY_UNDONE.log(session=name.removeprefix(_COPYING))
            if left:
                bank.flush()

    def names(self) -> list[str]:
        """Return the names of all sessions, sorted."""
        return [name.removeprefix(_INFO) for name in self._records.names() if name.startswith(_INFO)]

    def infos(self) -> list[SessionInfo]:
        """Return what all sessions are, sorted by name."""
        return [self.info(name) for name in self.names()]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._records.read(_INFO + name) is not None

    def info(self, name: str) -> SessionInfo:
        """Return what a session is.

        Raises:
            UnknownSessionError: there is none of that name.
            CorruptedError: its record cannot be read.
        """
        record = self._records.read(_INFO + check_name(name))
        if record is None:
            names = self.names()
            known = f"; there are {', '.join(map(repr, names))}" if names else "; there is none at all"
            raise UnknownSessionError(f"there is no session {name!r}{nearest(name, names)}{known}")
        return _parsed(name, record)

    def load(self, name: str) -> tuple[SessionInfo, dict[str, Tensor]]:
        """Return what :meth:`save` was given last: the session and the tensors, none if it has read nothing yet.

        Raises:
            CorruptedError: they cannot be read.
        """
        record = self._records.read(_STATE + name)
        try:
            state = load(record or b"")
            info = read_bytes(state.pop(_INFO_TENSOR))
        except (SafetensorError, ValueError, KeyError) as error:
            raise CorruptedError(f"the state of session {name!r} cannot be read: {error}") from error
        return _parsed(name, info), state

    def save(self, info: SessionInfo, state: Mapping[str, Tensor]) -> None:
        """Write down a session's state and make it durable, with all its chunks so far, in one step.

        Raises:
            ReadOnlyError: the backend is read-only.
        """
        record = json.dumps(unstructure(info)).encode()
        described = torch.frombuffer(bytearray(record), dtype=torch.uint8)
        self._records.write(_STATE + info.name, save({**state, _INFO_TENSOR: described}))
        self._records.write(_INFO + info.name, record)
        self.bank.flush()

    def copy(self, source: str, target: str) -> None:
        """Make ``target`` a session like ``source``, apart from it from now on.

        It is there all at once, when everything has been copied; or not at all, if this fails or the process ends.

        Raises:
            UnknownSessionError: there is no ``source``.
            SessionError: there is a ``target`` already; drop it first.
            ReadOnlyError: the backend is read-only.
            BackendError: there is no room.
        """
        self.info(source)
        info, state = self.load(source)
        if check_name(target) in self:
            raise SessionError(f"there is a session {target!r} already; drop it first, or choose another name")
        twin = attrs.evolve(info, name=target)
        try:
            self._records.write(_COPYING + target, b"")
            for layer in info.next_ids:
                self.bank.fork(info.namespace(layer), twin.namespace(layer))
            self.bank.flush()  # which a backend may do in several steps
            self._records.drop(_COPYING + target)
            self.save(twin, state)
            events.SESSION_COPIED.log(source=source, session=target, tokens=info.tokens)
        except BaseException:
            if not self.bank.read_only:
                self._undo_copy(target)
                with contextlib.suppress(BackendError):  # it is made durable later, or undone again when next opened
                    self.bank.flush()
            raise

    def drop(self, name: str) -> None:
        """Forget a session, its chunks included.

        Raises:
            UnknownSessionError: there is none of that name.
            ReadOnlyError: the backend is read-only.
        """
        info = self.info(name)
        self._drop_contents(info)
        self.bank.flush()
        events.SESSION_DROPPED.log(session=name, tokens=info.tokens)

    def _drop_contents(self, info: SessionInfo) -> None:
        for namespace in self.bank.namespaces():  # also what an interrupted reading left in layers new to the session
            if session_of(namespace) == info.name:
                self.bank.drop(namespace)
        for record in (_INFO + info.name, _STATE + info.name):
            self._records.drop(record)

    def _undo_copy(self, target: str) -> None:
        self._drop_contents(SessionInfo(name=target))
        self._records.drop(_COPYING + target)


def read_bytes(tensor: Tensor) -> bytes:
    """Return the bytes that a tensor keeps, ``[N]`` uint8.

    Raises:
        ValueError: it is something else.
    """
    if tensor.dtype != torch.uint8 or tensor.ndim != 1:
        raise ValueError(f"{tensor.dtype} {list(tensor.shape)} keeps no bytes")
    return tensor.numpy().tobytes()


def _parsed(name: str, record: bytes) -> SessionInfo:
    try:
        info = structure_options(SessionInfo, parse_json(record))
    except ValueError as error:
        raise CorruptedError(f"the record of session {name!r} cannot be read: {error}") from error
    if info.name != name:
        raise CorruptedError(f"the record of session {name!r} is that of session {info.name!r}")
    if not all(0 <= number < _LARGEST for number in (info.tokens, *info.next_ids.values())):
        raise CorruptedError(f"the record of session {name!r} says {info.tokens} tokens and next ids {info.next_ids}")
    return info
