"""What a forward or generate() gives beside tokens: scores, hidden states, attentions, some logits only."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from tiny_models import padded_batch, random_tokens, tiny_model

import memcore
from memcore import MemoryConfig

SMALL = MemoryConfig(window=32, chunk_size=8, sinks=4, top_k=2, query_tokens=6, question_tokens=5, retrieve_every=3)
EVERYTHING = attrs.evolve(SMALL, top_k=10_000, positions="original", retrieve_every=1)

families = pytest.mark.parametrize("family", ["llama", "gemma3_text"])  # without and with sliding layers


def close(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


@families
@torch.no_grad()
def test_scores_logits_and_hidden_states_of_generate_are_the_plain_models(family: str) -> None:
    model = tiny_model(family)
    options = {"output_scores": True, "output_logits": True, "output_hidden_states": True}
    tokens = random_tokens(2, 80, seed=100)

    def generate() -> Any:
        return model.generate(tokens, max_new_tokens=8, do_sample=False, return_dict_in_generate=True, **options)

    want = generate()
    memcore.wrap(model, EVERYTHING)
    got = generate()
    for name in ("scores", "logits", "hidden_states"):
        close(got[name], want[name])


@families
@torch.no_grad()
def test_hidden_states_can_be_asked_for_by_layer(family: str) -> None:
    model = tiny_model(family)
    tokens = random_tokens(2, 100, seed=101)
    for wanted in (True, [1], 1):
        want = model(tokens, output_hidden_states=wanted).hidden_states
        got = memcore.wrap(model, EVERYTHING)(tokens, output_hidden_states=wanted).hidden_states
        assert [each is None for each in got] == [each is None for each in want]
        close([each for each in got if each is not None], [each for each in want if each is not None])
        memcore.unwrap(model)


@families
@torch.no_grad()
@pytest.mark.parametrize("keep", [1, 7, torch.tensor([0, 35, 36, 99])], ids=str)
def test_only_the_logits_asked_for_are_computed(family: str, keep: int | torch.Tensor) -> None:
    model = tiny_model(family)
    tokens = random_tokens(2, 100, seed=102)
    want = model(tokens, logits_to_keep=keep).logits
    close(memcore.wrap(model, EVERYTHING)(tokens, logits_to_keep=keep).logits, want)


@families
@torch.no_grad()
def test_generation_from_embeddings_is_generation_from_their_tokens(family: str) -> None:
    model = tiny_model(family)
    batch = padded_batch([80, 50], side="left", seed=103)
    mask, options = batch["attention_mask"], {"max_new_tokens": 12, "do_sample": False}
    want = model.generate(batch["input_ids"], attention_mask=mask, **options)[:, 80:]
    memcore.wrap(model, EVERYTHING)
    embeddings = model.get_input_embeddings()(batch["input_ids"])
    assert torch.equal(model.generate(inputs_embeds=embeddings, attention_mask=mask, **options), want)


@families
@torch.no_grad()
def test_attentions_are_the_models_own_within_the_window_and_refused_beyond(family: str) -> None:
    model = tiny_model(family, attention="eager")
    tokens = random_tokens(2, 60, seed=104)
    want = model(tokens[:, :36], output_attentions=True).attentions
    memcore.wrap(model, SMALL)
    got = model(tokens[:, :36], output_attentions=True).attentions
    assert len(got) == len(want)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    options = {"output_attentions": True, "return_dict_in_generate": True, "do_sample": False}
    assert len(model.generate(tokens[:, :20], max_new_tokens=10, **options).attentions) == 10
    for length in (60, 30):  # at once, and where the window is full
        with pytest.raises(memcore.UnsupportedInputError, match="output_attentions"):
            model.generate(tokens[:, :length], max_new_tokens=20, **options)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_the_router_of_a_mixture_of_experts_is_judged_by_all_tokens(family: str) -> None:
    model = tiny_model(family)
    batch = padded_batch([90, 61], side="right", seed=105)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    real = batch["attention_mask"].bool().flatten()

    def forward() -> Any:
        return model(**batch, labels=labels, output_router_logits=True)

    want = forward()
    memcore.wrap(model, EVERYTHING)
    got = forward()
    close(got.aux_loss, want.aux_loss)
    close(got.loss, want.loss)
    close([each[real] for each in got.router_logits], [each[real] for each in want.router_logits])


def test_an_output_that_cannot_be_joined_is_refused() -> None:
    model = tiny_model("llama")
    decoder = model.get_decoder()
    plain = decoder.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = plain(*args, **kwargs)
        output["extra"] = torch.zeros(1)
        return output

    decoder.forward = forward  # as a library that adds an output of its own would do
    memcore.wrap(model, SMALL)
    model(random_tokens(1, 36, seed=106))
    with pytest.raises(memcore.UnsupportedInputError, match="extra is not available once"):
        model(random_tokens(1, 100, seed=106))
