"""Questions about a long text, which each way of reading reads once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from memcore.config import MemoryConfig
from memcore.errors import EvaluationError
from memcore.evaluation.questions import Question
from memcore.evaluation.ranking import encode_options, log_probabilities
from memcore.evaluation.record import Record
from memcore.evaluation.ways import check_ways, read_as, seen
from memcore.prompt import closing, opening
from memcore.reader import Progress, Reader
from memcore.transcript import next_turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT: Final = "Question: {question}\nAnswer:"
"""How a model without a chat template is asked."""


def result_name(question: Question, way: str) -> str:
    """Return the name of one result."""
    return f"{way} / {question.question}"


def evaluate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    questions: Sequence[Question],
    ways: Sequence[str],
    *,
    config: MemoryConfig,
    record: Record,
    prompt: str = PROMPT,
    max_new_tokens: int = 32,
    progress: Callable[[str, int], Progress] | None = None,
) -> None:
    """Ask every question in every way, and keep each result in the record; what is there already is not done again.

    The text is read once in each way, and every question goes on from a copy of that: it meets no other question. A
    question with options is answered by the likeliest one, any other by what the model generates.

    Args:
        model: wrapped or not, see :func:`memcore.evaluation.ways.read_as`.
        tokenizer: the model's. With a chat template text and question are a message of the user.
        text: what is asked about.
        questions: what is asked.
        ways: see :data:`memcore.evaluation.ways.WAYS`.
        config: the memory's.
        record: where results go.
        prompt: how a model without a chat template is asked, with ``{question}`` in it.
        max_new_tokens: longest answer.
        progress: given a description and how much there is to do, returns what is told how far it is.

    Raises:
        EvaluationError: there is no such way, or the prompt has no place for the question.
    """
    check_ways(ways, config)
    if "{question}" not in prompt:
        raise EvaluationError(f"the prompt must have a place for the question, {{question}}; got {prompt!r}")
    ids = opening(tokenizer, text)
    for way in ways:
        left = [each for each in questions if result_name(each, way) not in record.results]
        if not left:
            continue
        with read_as(model, way, config, tokenizer):
            reader, given = Reader(model, tokenizer), seen(ids, way, config)
            reader.read(given, progress(f"{way}, reading", given.shape[1]) if progress is not None else None)
            tell = progress(f"{way}, questions", len(left)) if progress is not None else None
            for done, question in enumerate(left, start=1):
                begun = time.perf_counter()
                result = _ask(model, tokenizer, reader, question, prompt, max_new_tokens)
                took = {"read": reader.tokens, "reading": reader.seconds, "seconds": time.perf_counter() - begun}
                record.add(result_name(question, way), {**result, **took})
                if tell is not None:
                    tell(done, len(left))


def _ask(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    reader: Reader,
    question: Question,
    prompt: str,
    max_new_tokens: int,
) -> dict[str, Any]:
    asked = question.question if tokenizer.chat_template else prompt.replace("{question}", question.question)
    if not question.options:
        reply = reader.ask(closing(tokenizer, asked), max_new_tokens=max_new_tokens).text
        return {"reply": reply, "right": question.is_answered_by(_counting(reply, tokenizer))}
    after = next_turn(tokenizer, []).after if tokenizer.chat_template else ""
    between = "" if tokenizer.chat_template else " "
    ids, options = encode_options(tokenizer, asked + after, question.options, between=between)
    scores = log_probabilities(model, reader.cache(), ids, options)
    reply = question.options[scores.index(max(scores))]
    return {"reply": reply, "scores": scores, "right": reply in question.answers}


def _counting(reply: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what counts of a reply: its first line, of a model without a chat template, which would ask on."""
    return reply if tokenizer.chat_template else reply.strip().partition("\n")[0]


def summary(results: dict[str, Any], ways: Sequence[str], questions: Sequence[Question]) -> dict[str, float]:
    """Return the share of questions that each way answered."""
    return {
        way: sum(bool(results[result_name(each, way)]["right"]) for each in questions) / len(questions) for way in ways
    }
