"""The model behind the server: it answers from sessions and goes on with conversations, one call at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs
import torch
from transformers import StoppingCriteriaList

from memcore.listener import Hearing, Listener
from memcore.memory import Memory
from memcore.prompt import encode
from memcore.reader import answer
from memcore.serving import asking
from memcore.session import Session
from memcore.turns import ends_of_turn, laid_out, stops_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from memcore.serving.requests import AskRequest, ChatRequest

_OPEN: Final = 4
"""Sessions that are kept open; each holds the keys and values of its window."""


@attrs.frozen(kw_only=True)
class Reply:
    """The next message of a conversation.

    Attributes:
        text: what it says.
        finish_reason: ``"stop"`` where the model or a stop text ended it, ``"length"`` where it became too long.
        prompt_tokens: tokens before it, those of the session included.
        cached_tokens: how many of these the session had read.
        completion_tokens: tokens of the reply.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class ServedModel:
    """A wrapped model, its tokenizer, and sessions that it has opened. Not for two threads at once.

    Args:
        model: a wrapped model.
        tokenizer: its tokenizer.
        name: what the model is called.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        memory = model.memory
        assert isinstance(memory, Memory)
        self.name = name
        self.memory = memory
        self.tokenizer = tokenizer
        self._model = model
        self._open: OrderedDict[str, Session] = OrderedDict()

    def session(self, name: str) -> Session:
        """Return a session as it is now.

        Raises:
            UnknownSessionError: there is none of that name.
            SessionMismatchError: it was made with another model, tokenizer or configuration.
        """
        session = self._open.pop(name, None)
        if session is None or session.info.changed != self.memory.sessions.info(name).changed:
            session = Session(self._model, name, self.tokenizer, create=False)
        self._open[name] = session
        while len(self._open) > _OPEN:
            self._open.popitem(last=False)
        return session

    def check(self, name: str) -> None:
        """Raise what stands in the way of asking a session: an UnknownSessionError, a SessionError, ..."""
        self.session(name).cache()

    def ask(
        self,
        request: AskRequest,
        tell: Callable[[asking.WrittenToken], None],
        progress: Callable[[int, int], None],
        stopped: threading.Event,
    ) -> asking.Exchange:
        """Answer a question from a session; see :func:`memcore.serving.asking.watching`."""
        session = self.session(request.session)
        watched = asking.watching(self._model, self.tokenizer, tell=tell, progress=progress, stopped=stopped)
        with request.sampling.generation() as generation, watched as watch:
            answered = session.ask(
                request.question,
                max_new_tokens=request.max_new_tokens,
                stopping_criteria=watch.criteria,
                **generation,
            )
        return watch.exchange(request.question, answered)

    def reply(self, request: ChatRequest, session: str | None, tell: Hearing, stopped: threading.Event) -> Reply:
        """Go on with a conversation, after what a session has read, which stays as it is.

        Args:
            request: the conversation.
            session: name of the session; None for none.
            tell: called with each piece of the reply.
            stopped: ends it after the token under way once it is set.

        Raises:
            StoppedError: it was stopped before the reply began.
            UnsupportedInputError: the chat template does not take the messages.
            SessionError: the session cannot be used.
        """
        model, tokenizer = self._model, self.tokenizer
        turns, before = [dict(each) for each in request.turns], []
        if session is None:
            read, cache, begun = torch.empty(1, 0, dtype=torch.long), self.memory.new_cache(), False
            before = [{"role": "system", "content": request.system}] if request.system else []
        else:
            opened = self.session(session)
            read, cache, begun, before = opened.token_ids(), opened.cache(), True, opened.messages
            if request.system:  # nothing can be put before what was read
                turns[0]["content"] = f"{request.system}\n\n{turns[0]['content']}"
        text, said = laid_out(tokenizer, before, turns, begun=begun)
        fed = encode(tokenizer, text, special=not begun and not tokenizer.chat_template)
        ends = ends_of_turn(model, tokenizer, said)
        prompt = read.shape[1] + fed.shape[1]
        listener = Listener(tokenizer, prompt, (*stops_of(tokenizer), *request.stops), tell, stopped, ends)
        ending: dict[str, Any] = {"eos_token_id": sorted(ends)} if ends else {}
        with self.memory.reading(asking.stoppable(None, stopped)), request.sampling.generation() as generation:
            replied = answer(
                model,
                tokenizer,
                read=read,
                question=fed,
                cache=cache,
                max_new_tokens=request.max_tokens,
                stopping_criteria=StoppingCriteriaList([listener]),
                **ending,
                **generation,
            )
        listener.end(replied.token_ids)
        written = replied.token_ids.tolist()
        ended = listener.came_to_a_stop or (written[-1:] and written[-1] in ends)
        return Reply(
            text=listener.text,
            finish_reason="stop" if ended or len(written) < request.max_tokens else "length",
            prompt_tokens=prompt,
            cached_tokens=read.shape[1],
            completion_tokens=len(written),
        )
