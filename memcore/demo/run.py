"""The demonstration itself: one text, the same questions, three ways to read."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from memcore.adapter import unwrap, wrap
from memcore.config import MemoryConfig
from memcore.demo.peak import PeakMemory
from memcore.demo.text import Fact, choose_facts, first_tokens, hide, language_reference
from memcore.errors import ConfigError
from memcore.prompt import encode
from memcore.reader import Answer, Progress, Reader

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ANSWER_TOKENS = 8

WITHOUT, WITH, FULL = "without memory", "with memory", "full attention"


@attrs.frozen(kw_only=True)
class Method:
    """What one way of reading came to.

    Attributes:
        name: which way.
        tokens: how many were read.
        seconds: how long reading them took.
        peak_mib: memory at its highest while reading and answering, above the loaded model.
        answers: one per fact.
    """

    name: str
    tokens: int
    seconds: float
    peak_mib: float
    answers: tuple[Answer, ...]


@attrs.frozen(kw_only=True)
class Demonstration:
    """Everything that was asked and answered.

    Attributes:
        facts: what was hidden, shallowest first.
        methods: without memory, with memory, full attention.
        positions: where each fact stands in the text, in tokens.
    """

    facts: tuple[Fact, ...]
    methods: tuple[Method, ...]
    positions: tuple[int, ...]


def demonstrate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: MemoryConfig,
    *,
    tokens: int,
    facts: int = 4,
    seed: int = 0,
    full_attention: bool = True,
    on_start: Callable[[str, int], Progress | None] = lambda name, tokens: None,
) -> Demonstration:
    """Hide facts in the language reference and ask for each, in every way of reading.

    Args:
        model: the model, not wrapped; it is given back as it was.
        tokenizer: its tokenizer.
        config: the memory.
        tokens: how much of the language reference to read; at least two windows.
        facts: how many facts to hide.
        seed: which ones.
        full_attention: whether to read with full attention, too.
        on_start: called with a method's name and how many tokens it reads; returns what to tell of its progress.

    Raises:
        ConfigError: the text would fit the window, so that there is nothing to remember.
    """
    if tokens < 2 * config.window_length:
        raise ConfigError(
            f"tokens must be at least twice the window ({config.window_length}), or there is little to remember; "
            f"got {tokens}"
        )
    # What stands in the last window needs no memory.
    hidden = choose_facts(facts, seed, until=1 - config.window_length / tokens)
    text = hide(hidden, first_tokens(language_reference(), tokens, tokenizer))
    ids = encode(tokenizer, text, special=True)
    questions = [encode(tokenizer, f"\n\n{fact.prompt}", special=False) for fact in hidden]
    with torch.no_grad():
        model(input_ids=ids[:, :8].to(model.device))  # only now are the weights in memory, all of them
    level = PeakMemory.in_use(model.device)

    def method(name: str, read: Tensor) -> Method:
        gc.collect()
        reader = Reader(model, tokenizer)
        with PeakMemory(model.device, level) as peak:
            reader.read(read, on_start(name, read.shape[1]))
            answers = [reader.ask(question, max_new_tokens=ANSWER_TOKENS) for question in questions]
        return Method(
            name=name, tokens=reader.tokens, seconds=reader.seconds, peak_mib=peak.mib, answers=tuple(answers)
        )

    # The first token stays, as many models need it to begin with.
    methods = [method(WITHOUT, torch.cat([ids[:, :1], ids[:, 1 - config.window_length :]], dim=1))]
    wrap(model, config)
    try:
        methods.append(method(WITH, ids))
    finally:
        unwrap(model)
    if full_attention:
        methods.append(method(FULL, ids))
    positions = [encode(tokenizer, text[: text.index(fact.sentence)], special=True).shape[1] for fact in hidden]
    return Demonstration(facts=tuple(hidden), methods=tuple(methods), positions=tuple(positions))


def right_answers(facts: Sequence[Fact], method: Method) -> list[bool]:
    """Say for each fact whether a method answered it."""
    return [fact.is_answered_by(answer.text) for fact, answer in zip(facts, method.answers, strict=True)]
