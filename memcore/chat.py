"""A conversation of many turns, of which the model forgets nothing that its memory can find."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from memcore.cache import MemoryCache
from memcore.errors import SessionError, UnsupportedInputError
from memcore.listener import Hearing, Listener, overlap, without_end
from memcore.memory import Memory, memory_of
from memcore.prompt import encode
from memcore.reader import BEAMS, SEQUENCES, Answer, Progress, answer, feed, setting
from memcore.session import Session
from memcore.transcript import USER, Message, next_turn
from memcore.turns import ends_of_turn, lead, replied, stops_of, with_saying

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Chat:
    """A conversation whose memory outlives the window and, with a session on disk, the process.

    Every turn feeds only what is new to one cache. What is said and what is replied enter the memory alike, token by
    token, and stay as they were said.

    A turn is either done or did not happen: if :meth:`say` raises, KeyboardInterrupt included, the chat is as it was
    before. :meth:`stop` ends a reply early, and what was generated of it counts as the reply.

    Example:
        >>> chat = memcore.Chat(model, tokenizer, system="Be brief.")  # doctest: +SKIP
        >>> chat.say("My cat is called Moth.").text  # doctest: +SKIP
        >>> chat.say("What is my cat called?").text  # doctest: +SKIP
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        session: Session | str | None = None,
        *,
        system: str = "",
    ) -> None:
        """Begin a chat, or go on with one.

        Args:
            model: a wrapped model.
            tokenizer: the model's. With its chat template, or, if it has none, as a plain transcript of ``User:`` and
                ``Assistant:``.
            session: a session, or the name of one, that the chat goes on in and that every turn is kept in; None for
                a chat that is forgotten with this object. What a session has read before is known to the chat.
            system: what the model is told before anything else; a chat that goes on has it already.

        Raises:
            NotWrappedError: the model has no memory.
            SessionError: the session is that of another model or tokenizer.
            UnsupportedInputError: the session has begun already, with another system message; or the chat template
                does not take one.
            UnsupportedModelError: the chat template cannot be followed turn by turn.
        """
        memory = memory_of(model)
        if isinstance(session, Session) and session.model is not model:
            raise SessionError(f"session {session.info.name!r} was opened with another model than the chat's")
        self._model = model
        self._tokenizer = tokenizer
        self._said: Session | _Fleeting = (
            _Fleeting(model, memory)
            if session is None
            else Session(model, session, tokenizer)
            if isinstance(session, str)
            else session
        )
        self._beginning = [{"role": "system", "content": system.strip()}] if system.strip() else []
        if self._beginning and self._said.tokens and self.messages[:1] != self._beginning:
            raise UnsupportedInputError(
                f"the session has read {self._said.tokens:,} tokens already, and a system message cannot be put before "
                "them: leave `system` out, or begin another session"
            )
        next_turn(tokenizer, self.messages)  # now is the time to complain about the template
        self._stopped = threading.Event()

    @property
    def session(self) -> Session | None:
        """The session that the chat is kept in."""
        return self._said if isinstance(self._said, Session) else None

    @property
    def messages(self) -> list[Message]:
        """What was said, as chat templates take it. At the end may stand a text that was read and not yet talked of."""
        return copy.deepcopy(self._said.messages or self._beginning)

    @property
    def tokens(self) -> int:
        """Tokens said and read so far, by either side."""
        return self._said.tokens

    def token_ids(self) -> Tensor:
        """Return everything said and read so far as the model saw it, ``[1, T]`` int64."""
        return self._said.token_ids()

    def read(self, text: str, progress: Progress | None = None, *, checkpoint_tokens: int = 8192) -> None:
        """Read a text, of any length, that is to be talked of. It begins what the user says next.

        In a session, reading that was interrupted is gone on with by reading the same text again.

        Args:
            text: the text.
            progress: told how far it is, in tokens of this text.
            checkpoint_tokens: in a session, about how many tokens to read between two checkpoints.

        Raises:
            UnsupportedInputError: the text is empty.
            SessionError: the session has read another text in part, or another handle on it has read on.
            ReadOnlyError: the session's backend is read-only.
        """
        text = text.strip()
        if not text:
            raise UnsupportedInputError("there is nothing to read: the text is empty")
        session = self.session
        left = session.info.unfinished if session is not None else None
        before = self.tokens - (0 if left is None else left.done)
        opening = self._lead(before)
        if not self._tokenizer.chat_template and not replied(self._said.messages):
            opening = opening.removesuffix(f"{USER} ")  # the text stands on its own before the first turn
        ids = self._encode(f"{opening}{text}\n\n", begins=not before)
        messages = with_saying(self.messages, text)
        self._said.ingest(ids, progress=progress, checkpoint_tokens=checkpoint_tokens, messages=messages)

    def say(self, text: str, *, on_text: Hearing | None = None, max_new_tokens: int = 512, **generation: Any) -> Answer:
        """Say something and return the reply, which ends with the model's turn, or after ``max_new_tokens``.

        Args:
            text: what the user says.
            on_text: called with each piece of the reply as it is generated; together they are the reply's text.
            max_new_tokens: longest reply.
            **generation: more arguments of ``generate()``; without any the reply is the likeliest, token by token.

        Returns:
            The reply, and the passages that its last tokens were generated with.

        Raises:
            UnsupportedInputError: nothing was said; or the arguments ask for beams or several replies.
            SessionError: the session has read a text in part; or another handle on it has read on.
            ReadOnlyError: the session's backend is read-only.
        """
        if not text.strip():
            raise UnsupportedInputError("there is nothing to reply to: what was said is empty")
        self._check_one(generation)
        self._stopped.clear()
        replies: list[Answer] = []

        def step(cache: MemoryCache) -> tuple[Tensor, list[Message]]:
            reply, ids, messages = self._turn(cache, text.strip(), on_text, max_new_tokens, generation)
            replies.append(reply)
            return ids, messages

        self._said.extend(step)
        return replies[0]

    def stop(self) -> None:
        """End the reply that is being generated after the token under way; from any thread or signal handler.

        What was generated until then is kept as the reply.
        """
        self._stopped.set()

    def _turn(
        self, cache: MemoryCache, text: str, on_text: Hearing | None, max_new_tokens: int, generation: dict[str, Any]
    ) -> tuple[Answer, Tensor, list[Message]]:
        """Feed what is said, generate the reply, and close the turn.

        Returns:
            The reply, all ids that were fed, ``[1, T]``, and the messages after it.
        """
        tokenizer, read, messages = self._tokenizer, self._said.token_ids(), self.messages
        turn = next_turn(tokenizer, messages)
        question = self._encode(f"{self._lead(self.tokens)}{text}{turn.after}", begins=not self.tokens)
        messages = with_saying(messages, text)
        closing = next_turn(tokenizer, [*messages, {"role": "assistant", "content": ""}]).before
        ends = ends_of_turn(self._model, tokenizer, messages)
        criteria = StoppingCriteriaList(generation.pop("stopping_criteria", ()))
        begin = read.shape[1] + question.shape[1]
        listener = Listener(tokenizer, begin, stops_of(tokenizer), on_text, self._stopped, ends)
        criteria.append(listener)
        reply = answer(
            self._model,
            tokenizer,
            read=read,
            question=question,
            cache=cache,
            max_new_tokens=max_new_tokens,
            stopping_criteria=criteria,
            **({"eos_token_id": sorted(ends)} if ends else {}),
            **generation,
        )
        listener.end(reply.token_ids)
        kept = without_end(reply.token_ids, ends)
        if listener.came_to_a_stop:
            # The beginning of what the transcript goes on with has been fed: the last token, which completes it, not.
            kept = kept[: max(0, cache.seen - begin)]
            written = str(tokenizer.decode(kept, skip_special_tokens=True))
            closing = closing[overlap(written, closing) :]
        if cache.seen > begin + len(kept):
            cache.crop(begin + len(kept) - cache.seen)
        ids = torch.cat((question, kept[None], encode(tokenizer, closing, special=False)), dim=1)
        feed(self._model, cache, ids[:, cache.seen - read.shape[1] :])
        messages.append({"role": "assistant", "content": listener.text})
        return attrs.evolve(reply, text=listener.text), ids, messages

    def _lead(self, tokens: int) -> str:
        """Return what is to be fed before the user's next words, after so many tokens in all."""
        return lead(self._tokenizer, self.messages, begun=bool(tokens))

    def _encode(self, text: str, *, begins: bool) -> Tensor:
        # A chat template writes itself what begins a sequence.
        return encode(self._tokenizer, text, special=begins and not self._tokenizer.chat_template)

    def _check_one(self, generation: dict[str, Any]) -> None:
        for name in (BEAMS, SEQUENCES):
            if (wanted := setting(self._model, generation, name)) > 1:
                raise UnsupportedInputError(
                    f"a chat goes on with one reply, which is heard while it is generated; got {name}={wanted}"
                )


class _Fleeting:
    """What a chat without a session goes on from."""

    def __init__(self, model: PreTrainedModel, memory: Memory) -> None:
        self._model = model
        self._cache = memory.new_cache()
        self._read = torch.empty(1, 0, dtype=torch.long)
        self.messages: list[Message] = []

    @property
    def tokens(self) -> int:
        return self._read.shape[1]

    def token_ids(self) -> Tensor:
        return self._read.clone()

    def ingest(
        self, ids: Tensor, *, progress: Progress | None, checkpoint_tokens: int, messages: Sequence[Message]
    ) -> None:
        """Read ids; there are no checkpoints to go on from."""

        def step(cache: MemoryCache) -> tuple[Tensor, Sequence[Message]]:
            feed(self._model, cache, ids, progress)
            return ids, messages

        self.extend(step)

    def extend(self, step: Callable[[MemoryCache], tuple[Tensor, Sequence[Message]]]) -> None:
        """Go on by a step; if it fails, everything is as it was."""
        before = copy.deepcopy(self._cache)
        try:
            ids, messages = step(self._cache)
        except BaseException:
            self._cache = before
            raise
        self._read = torch.cat((self._read, ids), dim=1)
        self.messages = list(messages)
