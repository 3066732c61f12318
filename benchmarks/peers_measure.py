"""How every peer is measured. Needs torch and transformers only, of any release, to run where the peer does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from resident import Resident, forget_peak, peak
from torch import Tensor

WARM = 128
"""Tokens read before anything is measured; some presses look at the last 64 and want more than these."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A context with a key in it, and what asks for the key.

    Attributes:
        context: token ids.
        question: token ids.
        key: what the answer must contain.
    """

    context: list[int]
    question: list[int]
    key: str


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """A context, and what follows it in the text.

    Attributes:
        context: token ids.
        following: token ids, which are scored.
    """

    context: list[int]
    following: list[int]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A way to read a long context.

    Attributes:
        model: the model.
        prefill: reads ``[1, T]`` token ids and returns the cache.
        forward: logits ``[1, T, V]`` of more token ids, given the cache and how many tokens came before.
        scoring: the same for tokens that are scored, if that is another way; None if it is not.
        single: whether tokens after the context must come one at a time.
    """

    model: Any
    prefill: Callable[[Tensor], Any]
    forward: Callable[[Tensor, Any, int], Tensor]
    scoring: Callable[[Tensor, Any, int], Tensor] | None = None
    single: bool = False

    def after(self, ids: Tensor, cache: Any, seen: int, *, scored: bool = False) -> Tensor:
        """Return the logits ``[1, T, V]`` of token ids ``[1, T]`` after ``seen`` others."""
        forward = self.scoring if scored and self.scoring is not None else self.forward
        logits = []
        for part in ids.split(1 if self.single else ids.shape[1], dim=1):
            logits.append(forward(part, cache, seen))
            seen += part.shape[1]
        return torch.cat(logits, dim=1)


def _timed_prefill(peer: Peer, context: list[int]) -> tuple[Any, float]:
    begun = time.perf_counter()
    cache = peer.prefill(torch.tensor([context]))
    return cache, time.perf_counter() - begun


@torch.no_grad()
def ask(peer: Peer, question: Question, *, answer_tokens: int, decode_tokens: int) -> dict[str, Any]:
    """Read a context, ask, and generate greedily.

    Args:
        peer: who reads.
        question: what is read and asked.
        answer_tokens: tokens of the answer.
        decode_tokens: tokens generated and timed, those of the answer included.

    Returns:
        ``answer`` (token ids), seconds of ``prefill`` and of reading the question (``asked``), and milliseconds of each
        token after the answer's first (``decode_ms``).
    """
    cache, seconds = _timed_prefill(peer, question.context)
    seen = len(question.context)
    begun = time.perf_counter()
    logits = peer.after(torch.tensor([question.question]), cache, seen)
    seen += len(question.question)
    written, took = [int(logits[0, -1].argmax())], []
    asked = time.perf_counter() - begun
    while len(written) < max(answer_tokens, decode_tokens):
        begun = time.perf_counter()
        token = int(peer.forward(torch.tensor([[written[-1]]]), cache, seen)[0, -1].argmax())
        took.append(1000 * (time.perf_counter() - begun))
        written.append(token)
        seen += 1
    return {"answer": written[:answer_tokens], "prefill": seconds, "asked": asked, "decode_ms": took}


@torch.no_grad()
def score(peer: Peer, text: Continuation) -> dict[str, Any]:
    """Read a context and score what follows: the mean negative log-likelihood, in nats a token, of all but its first.

    The first token that follows is predicted by the context's last, whose logits a compressed cache was not asked for.
    """
    cache, seconds = _timed_prefill(peer, text.context)
    following = torch.tensor([text.following])
    logits = peer.after(following, cache, len(text.context), scored=True)[0, :-1].float()
    loss = torch.nn.functional.cross_entropy(logits, following[0, 1:])
    return {"loss": float(loss), "tokens": following.shape[1] - 1, "prefill": seconds}


def measure(peer: Peer, job: dict[str, Any]) -> dict[str, Any]:
    """Do all that a job asks.

    Args:
        peer: who reads.
        job: ``questions`` and ``texts``, fields of :class:`Question` and :class:`Continuation`, and the numbers of
            :func:`ask`.

    Returns:
        Results of each, and the process's resident memory in bytes: ``bare``, with the model loaded, and ``peak``,
        the most until all questions were answered, as the logits of what is scored would be more than the rest.
    """
    with torch.no_grad():
        first = torch.tensor([job["texts"][0]["context"][:WARM]])
        peer.model(input_ids=first)
        bare = Resident.now()  # only now are the weights in memory, all of them
        forget_peak()
        peer.forward(first[:, :1], peer.prefill(first), WARM)  # quanto compiles what it needs when it is first used
    numbers = {name: job[name] for name in ("answer_tokens", "decode_tokens")}
    answers = [ask(peer, Question(**each), **numbers) for each in job["questions"]]
    most = peak()
    scores = [score(peer, Continuation(**each)) for each in job["texts"]]
    return {"answers": answers, "scores": scores, "bare": bare.anonymous + bare.mapped, "peak": most}
