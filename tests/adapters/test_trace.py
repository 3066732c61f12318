"""What a trace says was read, against the attention weights of the plain model over the whole text."""

from __future__ import annotations

import attrs
import pytest
import torch
from tiny_models import random_tokens, tiny_model
from transformers import AutoTokenizer

import memcore
from memcore import MemoryConfig

SMALL = MemoryConfig(window=32, chunk_size=8, sinks=4, top_k=2, query_tokens=6, question_tokens=5, retrieve_every=3)
EVERYTHING = attrs.evolve(SMALL, top_k=10_000, positions="original")


@pytest.mark.parametrize(
    ("family", "attention"),
    # Soft-capping and learned sinks are for eager attention.
    [("llama", "sdpa"), ("llama", "eager"), ("stablelm", "sdpa"), ("gemma2", "eager"), ("gpt_oss", "eager")],
)
def test_with_full_recall_shares_are_those_of_full_attention(family: str, attention: str) -> None:
    tokens = random_tokens(1, 100, seed=1)
    model = memcore.wrap(tiny_model(family, attention=attention), EVERYTHING)
    with model.memory.trace() as trace:
        whole = model.generate(tokens, max_new_tokens=12, do_sample=False)
    with torch.no_grad():
        plain = tiny_model(family, attention="eager")(whole, output_attentions=True).attentions
    traced = trace.tokens()
    assert [token.position for token in traced] == list(range(100, 112))
    assert [token.token_id for token in traced] == [*whole[0, 100:111].tolist(), None]
    for token in traced:
        assert {chunk.layer for chunk in token.chunks} == {layer.layer for layer in token.layers}
        for chunk in token.chunks:
            weights = plain[chunk.layer][0, :, token.position - 1].mean(dim=0)
            share = weights[chunk.start : chunk.start + SMALL.chunk_size].sum()
            assert chunk.share == pytest.approx(float(share), abs=1e-5)
            assert torch.equal(chunk.token_ids, whole[0, chunk.start : chunk.start + SMALL.chunk_size])
        for layer in token.layers:
            weights = plain[layer.layer][0, :, token.position - 1].mean(dim=0)
            assert layer.sinks == pytest.approx(float(weights[:4].sum()), abs=1e-5)
            assert layer.memory + layer.sinks + layer.window == pytest.approx(float(weights.sum()), abs=1e-5)


def test_chunks_come_largest_share_first_and_only_those_of_the_latest_retrieval() -> None:
    model = memcore.wrap(tiny_model("llama"), SMALL)
    with model.memory.trace() as trace:
        model.generate(random_tokens(2, 100, seed=2), max_new_tokens=20, do_sample=False)
    for row in (0, 1):
        tokens = trace.tokens(row)
        assert len(tokens) == 20
        for token in tokens:
            shares = [chunk.share for chunk in token.chunks]
            assert shares == sorted(shares, reverse=True)
            assert len(shares) == SMALL.chunks * 2  # two layers
            by_layer = {
                layer.layer: sum(c.share for c in token.chunks if c.layer == layer.layer) for layer in token.layers
            }
            assert by_layer == pytest.approx({layer.layer: layer.memory for layer in token.layers}, abs=1e-6)
    assert {chunk.start for token in trace.tokens(0) for chunk in token.chunks} != {
        chunk.start for token in trace.tokens(1) for chunk in token.chunks
    }


def test_tracing_changes_nothing_and_ends_with_its_context() -> None:
    model = memcore.wrap(tiny_model("llama"), SMALL)
    tokens = random_tokens(1, 100, seed=3)
    expected = model.generate(tokens, max_new_tokens=20, do_sample=False)
    with model.memory.trace() as trace:
        assert torch.equal(model.generate(tokens, max_new_tokens=20, do_sample=False), expected)
        with pytest.raises(memcore.UnsupportedInputError, match="under way already"), model.memory.trace():
            pass
    before = len(trace.tokens())
    model.generate(tokens, max_new_tokens=20, do_sample=False)
    assert len(trace.tokens()) == before == 20


def test_several_generations_in_one_trace_follow_each_other() -> None:
    model = memcore.wrap(tiny_model("llama"), SMALL)
    with model.memory.trace() as trace:
        for seed in (4, 5):
            model.generate(random_tokens(1, 90, seed=seed), max_new_tokens=3, do_sample=False)
    assert [token.position for token in trace.tokens()] == [90, 91, 92] * 2
    assert [token.token_id is None for token in trace.tokens()] == [False, False, True] * 2


def test_tokens_inside_the_window_read_no_memory(tiny_folder: str) -> None:
    model = memcore.wrap(tiny_model("llama"), SMALL)
    with model.memory.trace() as trace:
        model.generate(random_tokens(1, 20, seed=6), max_new_tokens=5, do_sample=False)
    assert trace.tokens() == []
    assert "nothing had left the window" in trace.explain(AutoTokenizer.from_pretrained(tiny_folder))


def test_explain_gives_the_passages_as_text(tiny_folder: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    model = memcore.wrap(tiny_model("llama"), SMALL)
    tokens = random_tokens(1, 100, seed=7)
    with model.memory.trace() as trace:
        whole = model.generate(tokens, max_new_tokens=3, do_sample=False)
    passages, written = trace.explain(tokenizer, top=1).splitlines()[:-3], trace.explain(tokenizer).splitlines()[-3:]
    first = trace.tokens()[0]
    totals = {c.start: sum(o.share for o in first.chunks if o.start == c.start) / 2 for c in first.chunks}
    best = max(totals, key=lambda start: totals[start])
    text = tokenizer.decode(tokens[0, best : best + SMALL.chunk_size])
    assert any(line.endswith(f"% [{best:,}] {text}") for line in passages)
    assert written[0].startswith(
        f"{tokenizer.decode(whole[0, 100:101])!r} at 100: {sum(totals.values()):.1%} from memory: "
        f"[{best:,}] {totals[best]:.1%}, "
    )
    assert written[2].startswith("the next token at 102: ")


def test_passages_add_up_what_all_tokens_and_layers_read() -> None:
    model = memcore.wrap(tiny_model("llama"), SMALL)
    with model.memory.trace() as trace:
        whole = model.generate(random_tokens(2, 100, seed=9), max_new_tokens=8, do_sample=False)
    for row in (0, 1):
        passages, tokens = trace.passages(row), trace.tokens(row)
        shares = [passage.share for passage in passages]
        assert shares == sorted(shares, reverse=True)
        assert {passage.start for passage in passages} == {chunk.start for token in tokens for chunk in token.chunks}
        for passage in passages:
            read = [chunk.share for token in tokens for chunk in token.chunks if chunk.start == passage.start]
            assert passage.share == pytest.approx(sum(read) / 2 / len(tokens)), "two layers"
            assert torch.equal(passage.token_ids, whole[row, passage.start : passage.start + SMALL.chunk_size])


def test_passages_of_two_texts_at_one_position_are_two() -> None:
    model, texts = memcore.wrap(tiny_model("llama"), EVERYTHING), [random_tokens(1, 90, seed=seed) for seed in (4, 5)]
    with model.memory.trace() as trace:
        for text in texts:
            model.generate(text, max_new_tokens=3, do_sample=False)
    first = {tuple(each.token_ids.tolist()) for each in trace.passages() if each.start == SMALL.sinks}
    assert first == {tuple(text[0, SMALL.sinks : SMALL.sinks + SMALL.chunk_size].tolist()) for text in texts}


def test_what_a_trace_cannot_follow_is_refused() -> None:
    model = memcore.wrap(tiny_model("llama"), SMALL)
    tokens = random_tokens(1, 70, seed=8).repeat(1, 2)
    with model.memory.trace():
        with pytest.raises(memcore.UnsupportedInputError, match="beam search"):
            model.generate(tokens, num_beams=2, max_new_tokens=5)
        with pytest.raises(memcore.UnsupportedInputError, match="assisted generation"):
            model.generate(tokens, prompt_lookup_num_tokens=3, max_new_tokens=30, do_sample=False)
