"""pipeline("text-generation") over a model with memory."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from tiny_models import tiny_model
from tiny_tokenizer import tiny_tokenizer
from transformers import pipeline

import memcore
from memcore import MemoryConfig

SMALL = MemoryConfig(window=32, chunk_size=8, sinks=4, top_k=2, query_tokens=6, question_tokens=5, retrieve_every=3)
EVERYTHING = attrs.evolve(SMALL, top_k=10_000, positions="original", retrieve_every=1)


def words(count: int, seed: int) -> str:
    chosen = torch.randint(0, 90, (count,), generator=torch.Generator().manual_seed(seed))
    return " ".join(f"w{n}" for n in chosen)


LONG, SHORT, MIDDLE = (words(count, seed) for seed, count in enumerate([120, 9, 50]))
MANY_TURNS = [{"role": role, "content": words(30, 10 + turn)} for turn, role in enumerate(["user", "assistant"] * 2)]


def texts(found: Any) -> list[str]:
    if isinstance(found, dict):
        return [str(found["generated_text"])]
    return [text for each in found for text in texts(each)]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        (LONG, {}),
        (LONG, {"return_full_text": False}),
        ([LONG, SHORT, MIDDLE], {}),
        ([LONG, SHORT, MIDDLE], {"batch_size": 3}),
        (LONG, {"num_return_sequences": 2, "num_beams": 2}),
        ([*MANY_TURNS, {"role": "user", "content": SHORT}], {}),
    ],
    ids=["text", "continuation", "texts", "batch", "beams", "chat"],
)
def test_with_full_recall_a_pipeline_writes_what_the_plain_models_does(
    family: str, prompt: Any, options: dict[str, Any]
) -> None:
    model = tiny_model(family)

    def write() -> list[str]:
        generator: Any = pipeline("text-generation", model=model, tokenizer=tiny_tokenizer(), device="cpu")
        return texts(generator(prompt, max_new_tokens=12, do_sample=False, **options))

    expected = write()
    memcore.wrap(model, EVERYTHING)
    assert write() == expected
    assert model.memory.passages()


def test_a_pipeline_makes_a_memory_of_its_own_for_each_text() -> None:
    model = memcore.wrap(tiny_model("llama"), SMALL)
    generator: Any = pipeline("text-generation", model=model, tokenizer=tiny_tokenizer(), device="cpu")
    options = {"max_new_tokens": 12, "do_sample": False}
    alone = texts(generator(LONG, **options))
    assert texts(generator([MIDDLE, LONG, LONG], **options))[1:] == 2 * alone
    assert model.memory.bank.namespaces() == []
