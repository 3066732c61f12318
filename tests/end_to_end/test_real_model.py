"""The main job on a real pretrained model and real text."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

import memcore
from memcore import MemoryConfig
from memcore.demo.text import language_reference

pytestmark = pytest.mark.model

CONFIG = MemoryConfig(window=256, chunk_size=32, top_k=4)

Loaded = tuple[Any, Any]


@pytest.fixture
def loaded(gemma: Loaded) -> Iterator[Loaded]:
    yield gemma
    if hasattr(gemma[0], "memory"):
        memcore.unwrap(gemma[0])


def reading(tokenizer: Any, tokens: int) -> Tensor:
    """Return the beginning of the language reference, ``[1, tokens]``."""
    ids: Tensor = tokenizer(language_reference()[: 8 * tokens], return_tensors="pt")["input_ids"]
    return ids[:, :tokens]


@torch.no_grad()
def test_inside_the_window_logits_are_bit_identical(loaded: Loaded) -> None:
    model, tokenizer = loaded
    ids = reading(tokenizer, 260)
    expected = model(ids).logits
    memcore.wrap(model, CONFIG)
    assert torch.equal(model(ids).logits, expected)


@torch.no_grad()
def test_full_recall_equals_full_attention(loaded: Loaded) -> None:
    model, tokenizer = loaded
    ids = reading(tokenizer, 800)
    expected = model(ids).logits
    memcore.wrap(model, attrs.evolve(CONFIG, top_k=10_000, positions="original"))
    logits = model(ids).logits
    # Logits reach 20 to 40 here and pass 18 layers: float32 leaves a few times 1e-5 of that.
    assert float((logits - expected).abs().max()) < 1e-5 * 40 * 18
    assert torch.equal(logits.argmax(dim=-1), expected.argmax(dim=-1))


@torch.no_grad()
def test_changing_later_tokens_changes_no_earlier_logit(loaded: Loaded) -> None:
    model, tokenizer = loaded
    memcore.wrap(model, CONFIG)
    ids = reading(tokenizer, 700)
    logits = model(ids).logits
    for t in (255, 500, 685):
        changed = ids.clone()
        changed[:, t + 1 :] = changed[:, t + 1 :].flip(dims=(1,))
        assert torch.equal(model(changed).logits[:, : t + 1], logits[:, : t + 1])


def with_a_fact(tokenizer: Any, depth: float) -> tuple[str, list[int], list[int]]:
    """Return a key, token ids of a text of 1,500 tokens that names it at this depth, and the question about it."""
    key = str(random.Random(depth).randrange(10_000, 100_000))
    body = reading(tokenizer, 1500)[0].tolist()
    fact = f"\n\nThe access code of the green vault is {key}. Remember it: the green vault opens with {key}.\n\n"
    question = (
        "\n\nQuestion: What is the access code of the green vault?\nAnswer: The access code of the green vault is"
    )
    hidden, asked = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (fact, question))
    cut = int(depth * len(body))
    return key, body[:cut] + hidden + body[cut:], asked


BACKENDS: dict[str, dict[str, object]] = {
    "exact": {},
    "hnswlib": {"exact_below": 0},
    "faiss": {"index": "ivf", "exact_below": 0},
    "lmdb": {"path": "memory"},
}


@pytest.mark.parametrize(
    ("backend", "depth"), [("exact", 0.2), ("exact", 0.6), ("hnswlib", 0.6), ("faiss", 0.2), ("lmdb", 0.6)]
)
def test_a_pass_key_far_outside_the_window_is_found(
    loaded: Loaded, backend: str, depth: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend != "exact":
        pytest.importorskip(backend, reason=f"{backend} is not installed")
    monkeypatch.chdir(tmp_path)
    model, tokenizer = loaded
    key, text, asked = with_a_fact(tokenizer, depth)
    ids = torch.tensor([text + asked])

    def answer() -> str:
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=7, do_sample=False)
        return str(tokenizer.decode(out[0, ids.shape[1] :]))

    memcore.wrap(model, window=512, backend=backend, backend_options=BACKENDS[backend])
    assert key in answer()
    assert any(key in tokenizer.decode(passage.token_ids) for passage in model.memory.passages())
    memcore.unwrap(model)
    # Control: without the chunks that were retrieved, window and sinks alone do not know it.
    ids = torch.cat((ids[:, :4], ids[:, -512:]), dim=1)
    assert key not in answer()


def test_a_trace_shows_that_the_answer_rests_on_the_fact(loaded: Loaded) -> None:
    model, tokenizer = loaded
    key, text, asked = with_a_fact(tokenizer, 0.6)
    ids = torch.tensor([text + asked])
    memcore.wrap(model, window=512)
    with model.memory.trace() as trace:
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=7, do_sample=False)
    assert key in tokenizer.decode(out[0, ids.shape[1] :])
    digits = [token for token in trace.tokens() if token.token_id and tokenizer.decode([token.token_id]) in key]
    assert len(digits) == len(key)
    for token in digits:
        assert f"the green vault is {key}" in tokenizer.decode(token.chunks[0].token_ids)
    assert f"the green vault is {key}" in trace.explain(tokenizer, top=1).splitlines()[0]


def test_a_session_on_disk_answers_after_it_was_closed(loaded: Loaded, tmp_path: Path) -> None:
    pytest.importorskip("lmdb", reason="lmdb is not installed")
    model, tokenizer = loaded
    key, text, asked = with_a_fact(tokenizer, 0.3)
    config = MemoryConfig(window=512, backend="lmdb", backend_options={"path": tmp_path / "memory"})
    memcore.wrap(model, config)
    memcore.Session(model, "vault", tokenizer).ingest(text)
    memcore.unwrap(model)
    memcore.wrap(model, config, backend_options={**config.backend_options, "read_only": True})
    session = memcore.Session(model, "vault", tokenizer)
    answers = [session.ask(asked, max_new_tokens=7) for _ in range(2)]
    assert key in answers[0].text
    assert answers[0].text == answers[1].text
    assert any(key in tokenizer.decode(passage.token_ids) for passage in answers[0].passages)
    assert session.tokens == len(text)
