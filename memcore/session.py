"""Named sessions: a memory that is filled once and asked many times, by this process or another."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from torch import Tensor

from memcore import events
from memcore.cache import MemoryCache
from memcore.errors import (
    CorruptedError,
    ReadOnlyError,
    SessionError,
    UnsupportedInputError,
)
from memcore.files import names_file, read_text
from memcore.memory import memory_of
from memcore.prompt import closing, encode, given_ids, opening
from memcore.reader import Answer, Progress, answer, feed
from memcore.session_binding import bound_to, check_same
from memcore.session_store import SessionStore, Unfinished, now, read_bytes
from memcore.transcript import Message, parse_messages
from memcore.transfer import input_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKENS: Final = "tokens"
"""Name of the tensor with all token ids read, beside those of the cache."""

_MESSAGES: Final = "messages"
"""Name of the tensor with the messages of a chat as JSON, uint8."""


class Session:
    """A memory with a name, which outlives the call and, with a persistent backend, the process.

    It is read into by :meth:`ingest` and asked by :meth:`ask`, which leaves it as it is. Every ``checkpoint_tokens``
    tokens what was read is made durable, so an interrupted ``ingest`` goes on from there when it is called again.

    Example:
        >>> model = memcore.wrap(model, backend="lmdb", backend_options={"path": "memory"})  # doctest: +SKIP
        >>> session = memcore.Session(model, "novel", tokenizer)  # doctest: +SKIP
        >>> session.ingest(Path("novel.txt"))  # doctest: +SKIP
        >>> session.ask("Who is Mr. Elton?").text  # doctest: +SKIP

    Attributes:
        info: what the session is and how far it has read.
        messages: what was said in it, if it is that of a :class:`memcore.Chat`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        name: str,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        create: bool = True,
    ) -> None:
        """Open a session, or begin one.

        Args:
            model: a wrapped model.
            name: any text that is not empty.
            tokenizer: the model's; without one everything must be given, and is answered, as token ids.
            create: whether to begin a session if there is none of that name.

        Raises:
            NotWrappedError: the model has no memory.
            UnknownSessionError: there is none of that name, and ``create`` is False or the backend is read-only.
            SessionMismatchError: it was made with another model, tokenizer or configuration; the message says which.
            ConfigError: the name is none.
            CorruptedError: what is stored of it cannot be read.
            BackendError: the backend fails, for want of disk space for example.
        """
        memory = memory_of(model)
        self._model: Any = model
        self._memory = memory
        self._tokenizer = tokenizer
        self._cache: MemoryCache | None = None
        self._read = torch.empty(1, 0, dtype=torch.long)
        self.messages: list[Message] = []
        made = bound_to(name, model, tokenizer, memory.config)
        store = memory.sessions
        if create and not memory.bank.read_only and name not in store:
            store.save(made, {})
            events.SESSION_BEGUN.log(session=name, model=made.model)
        self.info = store.info(name)
        check_same(self.info, made)
        if not self.info.tokenizer_fingerprint:
            self.info = attrs.evolve(self.info, tokenizer_fingerprint=made.tokenizer_fingerprint)
        self._load()
        events.SESSION_OPENED.log(session=name, tokens=self.tokens)

    def __repr__(self) -> str:
        return f"Session({self.info.name!r}, tokens={self.tokens})"

    @property
    def model(self) -> PreTrainedModel:
        """The model that reads and answers."""
        model: PreTrainedModel = self._model
        return model

    @property
    def tokens(self) -> int:
        """Tokens read so far."""
        return self.info.tokens

    def ingest(
        self,
        source: str | Path | Tensor | Sequence[int],
        *,
        progress: Progress | None = None,
        checkpoint_tokens: int = 8192,
        messages: Sequence[Message] | None = None,
    ) -> None:
        """Read a text into the memory, after what it has read before.

        If this is interrupted, by an exception, Ctrl-C or a crash, the session is as of the last checkpoint, and
        calling it again with the same text goes on from there. With a ``capacity``, chunks that were forgotten after
        that checkpoint stay forgotten, unless it was a crash and the backend had not committed since.

        Args:
            source: a text; the path of a UTF-8 file; or token ids, ``[T]`` or ``[1, T]``, which are read as they are.
            progress: told how far it is, in tokens of this text.
            checkpoint_tokens: about how many tokens to read between two checkpoints.
            messages: what :attr:`messages` are once all of it has been read; None for as they are.

        Raises:
            UnsupportedInputError: there is nothing to read, or a text is given and the session has no tokenizer.
            ReadOnlyError: the backend is read-only.
            SessionError: it has read another text in part, which must be finished first; or another handle on the
                same session has read on in the meantime.
        """
        self._check_writable()
        begun = self.info.unfinished
        ids = self._encode(source, first=self.tokens - (begun.done if begun else 0) == 0)
        digest = hashlib.sha256(ids.numpy().tobytes()).hexdigest()
        total = ids.shape[1]
        if begun is not None and begun.digest != digest:
            raise SessionError(
                f"session {self.info.name!r} has read {begun.done:,} of the {begun.tokens:,} tokens of another text; "
                "give that one again to finish it, or drop the session"
            )
        done = 0 if begun is None else begun.done
        try:
            while done < total:
                end = min(total, done + self._block(checkpoint_tokens))
                self._forward(ids[:, done:end], progress, done, total)
                left = None if end == total else Unfinished(digest=digest, tokens=total, done=end)
                self._checkpoint(ids[:, done:end], left, None if left else messages)
                done = end
        except BaseException:
            self._roll_back()
            raise

    def extend(self, step: Callable[[MemoryCache], tuple[Tensor, Sequence[Message]]]) -> None:
        """Go on by a step of the caller's own, and make it durable. If it fails, the session is as it was.

        Args:
            step: feeds tokens to the session's cache and returns all of them, ``[1, T]`` int64, and what
                :attr:`messages` are then.

        Raises:
            ReadOnlyError: the backend is read-only.
            SessionError: it has read a text in part, which must be finished first; or another handle on the same
                session has read on in the meantime.
        """
        self._check_writable()
        if self.info.unfinished is not None:
            left = self.info.unfinished
            raise SessionError(
                f"session {self.info.name!r} has read {left.done:,} of the {left.tokens:,} tokens of a text; "
                "read that one again to finish it first, or drop the session"
            )
        try:
            ids, messages = step(self._own_cache())
            self._checkpoint(ids, None, messages)
        except BaseException:
            self._roll_back()
            raise

    def ask(self, question: str | Tensor | Sequence[int], *, max_new_tokens: int = 64, **generation: Any) -> Answer:
        """Go on from what was read with a question, and forget question and answer again.

        Args:
            question: a text, which is put into the model's chat template if it has one; or token ids, as they are.
            max_new_tokens: longest answer.
            **generation: more arguments of ``generate()``; without any the answer is the likeliest, token by token.

        Raises:
            UnsupportedInputError: there is nothing to ask, or a text is asked and the session has no tokenizer; or more
                than one sequence is to be returned.
            SessionError: it has read nothing yet; or another handle has read on, or dropped it, in the meantime.
        """
        ids = closing(self._needs_tokenizer(), question) if isinstance(question, str) else given_ids(question)
        return answer(
            self._model,
            self._tokenizer,
            read=self._read,
            question=ids,
            cache=self.cache(),
            max_new_tokens=max_new_tokens,
            **generation,
        )

    def cache(self) -> MemoryCache:
        """Return ``past_key_values`` to go on with from what was read; it shares the memory, and leaves it as it is.

        Raises:
            SessionError: it has read nothing yet; or another handle has read on, or dropped it, in the meantime.
        """
        if not self._memory.bank.read_only:  # what a reader shows stays as it was
            self._check_latest()
        if self._cache is None:
            raise SessionError(f"session {self.info.name!r} has read nothing yet; ingest something first")
        return copy.deepcopy(self._cache)

    def token_ids(self) -> Tensor:
        """Return all tokens read, ``[1, T]`` int64, as ``generate()`` wants them together with :meth:`cache`."""
        return self._read.clone()

    def _forward(self, ids: Tensor, progress: Progress | None, done: int, total: int) -> None:
        def tell(end: int, _: int) -> None:
            if progress is not None:
                progress(done + end, total)

        feed(self._model, self._own_cache(), ids, tell)

    def _own_cache(self) -> MemoryCache:
        if self._cache is None:
            self._cache = MemoryCache(self._memory, [self.info.row_name])
        return self._cache

    def _block(self, checkpoint_tokens: int) -> int:
        """Return how many tokens to read up to the next checkpoint: whole segments, so that it changes no piece."""
        config = self._memory.config
        room = max(0, config.room - self.tokens)
        return room + max(1, (checkpoint_tokens - room) // config.segment_length) * config.segment_length

    def _checkpoint(
        self, ids: Tensor, unfinished: Unfinished | None, messages: Sequence[Message] | None = None
    ) -> None:
        assert self._cache is not None
        begun = perf_counter()
        self.messages = self.messages if messages is None else list(messages)
        self._read = torch.cat((self._read, ids), dim=1)
        bank = self._memory.bank
        self.info = attrs.evolve(
            self.info,
            tokens=self._read.shape[1],
            changed=now(),
            next_ids={
                str(layer.setup.index): bank.next_id(self.info.namespace(layer.setup.index))
                for layer in self._cache.memory_layers
                if layer.remembers
            },
            unfinished=unfinished,
        )
        said = bytearray(json.dumps(self.messages).encode())
        kept = {_TOKENS: self._read.to(torch.int32), _MESSAGES: torch.frombuffer(said, dtype=torch.uint8)}
        self._memory.sessions.save(self.info, {**self._cache.state(), **kept})
        seconds = perf_counter() - begun
        events.SESSION_CHECKPOINTED.log(session=self.info.name, tokens=self.tokens, seconds=seconds)

    def _roll_back(self) -> None:
        self._load()
        events.SESSION_ROLLED_BACK.log(session=self.info.name, tokens=self.tokens)

    def _load(self) -> None:
        """Become what the latest checkpoint says, and forget chunks that were stored after it."""
        store, bank = self._memory.sessions, self._memory.bank
        saved, state = store.load(self.info.name)
        if not bank.read_only and store.info(saved.name) != saved:  # a crash came between the two records
            store.save(saved, state)
            events.SESSION_REPAIRED.log(session=saved.name)
        self.info = attrs.evolve(saved, tokenizer_fingerprint=self.info.tokenizer_fingerprint)
        for layer in self._memory.layer_setups:
            if not layer.remembers:
                continue
            namespace = self.info.namespace(layer.index)
            next_id = self.info.next_ids.get(str(layer.index), 0)
            bank.reload(namespace, next_id)
            if bank.next_id(namespace) < next_id:
                raise CorruptedError(
                    f"session {self.info.name!r} has lost chunks: its record says {next_id} were stored in layer "
                    f"{layer.index}, the backend knows of {bank.next_id(namespace)}"
                )
            if not bank.read_only:
                bank.truncate(namespace, next_id)
        self.messages = []
        if not state:
            self._cache, self._read = None, self._read[:, :0]
            return
        try:
            if _MESSAGES in state:  # earlier versions kept none
                self.messages = parse_messages(read_bytes(state.pop(_MESSAGES)))
            self._read = _tokens(state.pop(_TOKENS), self.tokens)
            self._cache = MemoryCache.from_state(self._memory, state, [self.info.row_name], input_device(self._model))
        except KeyError as error:
            raise CorruptedError(f"the state of session {self.info.name!r} lacks {error}") from error
        except ValueError as error:
            raise CorruptedError(f"the state of session {self.info.name!r} cannot be read: {error}") from error
        if bank.read_only:  # another handle may look anew, and then the names show what is newer than this state
            self._cache = copy.deepcopy(self._cache)

    def _check_writable(self) -> None:
        if self._memory.bank.read_only:
            raise ReadOnlyError(f"session {self.info.name!r} cannot read on: its backend was opened read-only")
        self._check_latest()

    def _check_latest(self) -> None:
        if self._memory.sessions.info(self.info.name).changed != self.info.changed:
            raise SessionError(
                f"another handle on session {self.info.name!r} has read on in the meantime; open the session anew"
            )

    def _encode(self, source: str | Path | Tensor | Sequence[int], *, first: bool) -> Tensor:
        """Return the token ids of a source, ``[1, T]`` on the CPU."""
        if isinstance(source, Path):
            source = read_text(source)
        if not isinstance(source, str):
            return given_ids(source)
        if not source.strip():
            raise UnsupportedInputError("there is nothing to read: the text is empty")
        if names_file(source):
            raise UnsupportedInputError(
                f"expected a text, got the name of a file; pathlib.Path({source!r}) has what is in it read"
            )
        tokenizer = self._needs_tokenizer()
        return opening(tokenizer, source) if first else encode(tokenizer, source.rstrip() + "\n\n", special=False)

    def _needs_tokenizer(self) -> PreTrainedTokenizerBase:
        if self._tokenizer is None:
            raise UnsupportedInputError(
                f"session {self.info.name!r} was opened without a tokenizer, so it takes token ids only; "
                "open it with memcore.Session(model, name, tokenizer)"
            )
        return self._tokenizer


def tokens_read(sessions: SessionStore, name: str) -> Tensor:
    """Return the token ids that a session has read, ``[T]`` int64; none if it has read nothing yet.

    Raises:
        UnknownSessionError: there is none of that name.
        CorruptedError: its state cannot be read.
    """
    sessions.info(name)
    info, state = sessions.load(name)
    if _TOKENS not in state:
        return torch.empty(0, dtype=torch.long)
    try:
        return _tokens(state[_TOKENS], info.tokens)[0]
    except ValueError as error:
        raise CorruptedError(f"the state of session {name!r} cannot be read: {error}") from error


def _tokens(kept: Tensor, tokens: int) -> Tensor:
    """Return the token ids that a session has read, ``[1, tokens]`` int64, or raise ValueError."""
    if kept.dtype != torch.int32 or kept.shape != (1, tokens):
        raise ValueError(f"{tokens} tokens are said to be read, and there are {kept.dtype} {list(kept.shape)}")
    return kept.long()
