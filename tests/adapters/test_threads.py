"""Threads share a wrapped model: how one of them reads is nothing to the others."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from tiny_models import random_tokens, tiny_model
from torch import Tensor

import memcore
from memcore.reader import answer

PROMPTS = [random_tokens(1, length, seed=length) for length in (150, 171, 193)]


def wrapped() -> Any:
    return memcore.wrap(tiny_model("llama"), window=32, sinks=4, chunk_size=8, top_k=2, question_tokens=9)


@torch.no_grad()
def last_logits(model: Any, prompt: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=prompt, logits_to_keep=1).logits
    return logits


def test_a_thread_that_reads_a_text_changes_no_question_of_another() -> None:
    model = wrapped()
    alone = [last_logits(model, prompt) for prompt in PROMPTS]
    told: list[tuple[int, int]] = []
    begun, done = threading.Event(), threading.Event()

    def read() -> tuple[Tensor, int]:
        with model.memory.reading(lambda *progress: told.append(progress), question=False):
            begun.set()
            assert done.wait(60)
            return last_logits(model, PROMPTS[0]), model.memory.question_tokens

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        assert begun.wait(60)
        asked = [last_logits(model, prompt) for prompt in PROMPTS]
        assert not told
        done.set()
        as_text, question_tokens = reader.result(60)
    for each, expected in zip(asked, alone, strict=True):
        assert torch.equal(each, expected)
    assert question_tokens == 0
    assert told
    assert not torch.equal(as_text, alone[0])
    assert model.memory.question_tokens == 9


def test_contexts_of_reading_can_be_nested() -> None:
    memory = wrapped().memory
    with memory.reading(question=False):
        with memory.reading():
            assert memory.question_tokens == 9
        assert memory.question_tokens == 0
    assert memory.question_tokens == 9


def test_threads_get_the_answers_that_each_would_get_alone() -> None:
    model = wrapped()
    together = threading.Barrier(len(PROMPTS))

    def ask(prompt: Tensor, *, wait: bool) -> tuple[list[int], list[int]]:
        cache = model.memory.new_cache()
        if wait:
            together.wait(60)
        nothing = torch.empty(1, 0, dtype=torch.long)
        found = answer(model, None, read=nothing, question=prompt, cache=cache, max_new_tokens=12)
        return found.token_ids.tolist(), [passage.start for passage in found.passages]

    alone = [ask(prompt, wait=False) for prompt in PROMPTS]
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        for _ in range(5):
            assert list(pool.map(lambda prompt: ask(prompt, wait=True), PROMPTS)) == alone
