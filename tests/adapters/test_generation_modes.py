"""Ways of generating: every mode of generate(), streamers, stopping, caches, and loops of one's own."""

from __future__ import annotations

import copy
import importlib.util
import threading
from typing import Any

import attrs
import pytest
import torch
from tiny_models import padded_batch, random_tokens, tiny_model
from tiny_tokenizer import tiny_tokenizer
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
)

import memcore
from memcore import MemoryConfig

SMALL = MemoryConfig(window=32, chunk_size=8, sinks=4, top_k=2, query_tokens=6, question_tokens=5, retrieve_every=3)
EVERYTHING = attrs.evolve(SMALL, top_k=10_000, positions="original", retrieve_every=1)

families = pytest.mark.parametrize("family", ["llama", "gemma3_text"])  # without and with sliding layers


def generate(model: Any, tokens: torch.Tensor, **options: Any) -> torch.Tensor:
    torch.manual_seed(0)
    generated = model.generate(tokens, **{"max_new_tokens": 16, "do_sample": False, **options})
    sequences: torch.Tensor = getattr(generated, "sequences", generated)
    return sequences


@families
@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9},
        {"do_sample": True, "num_beams": 3, "num_return_sequences": 2},
        {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.5, "early_stopping": True},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 10},
        {"guidance_scale": 1.5},
        {"prefill_chunk_size": 16},
        {"prefill_chunk_size": 60, "num_beams": 2},
        {"use_cache": False, "max_new_tokens": 6},
        {"cache_implementation": "dynamic"},
        {"prompt_lookup_num_tokens": 4},
        {"assistant_early_exit": 1},
        {"max_new_tokens": 120},
    ],
    ids=str,
)
def test_with_full_recall_every_mode_writes_what_the_plain_model_writes(family: str, options: dict[str, Any]) -> None:
    model = tiny_model(family)
    tokens = random_tokens(1, 80, seed=80)
    expected = generate(model, tokens, **options)
    memcore.wrap(model, EVERYTHING)
    assert torch.equal(generate(model, tokens, **options), expected)


@families
@pytest.mark.parametrize("draft_remembers", [False, True])
def test_a_draft_model_assists(family: str, draft_remembers: bool) -> None:
    model, draft = tiny_model(family), tiny_model(family, seed=1)
    tokens = random_tokens(1, 80, seed=81)
    expected = generate(model, tokens)
    memcore.wrap(model, EVERYTHING)
    if draft_remembers:
        memcore.wrap(draft, SMALL)
    assert torch.equal(generate(model, tokens, assistant_model=draft), expected)


def test_a_wrapped_model_assists_a_plain_one() -> None:
    model = tiny_model("llama")
    tokens = random_tokens(1, 80, seed=82)
    expected = generate(model, tokens)
    draft = memcore.wrap(tiny_model("llama", seed=1), SMALL)
    assert torch.equal(generate(model, tokens, assistant_model=draft), expected)


def contrastive_search(model: Any, input_ids: torch.Tensor, generation_config: Any, **_: Any) -> torch.Tensor:
    """What transformers keeps on the hub today: candidates are repeated rows of the cache, of which one goes on."""
    count, alpha = 4, 0.6
    cache = DynamicCache(config=model.config)
    batch = torch.arange(len(input_ids))
    output = model(input_ids, past_key_values=cache, output_hidden_states=True)
    past, logits = output.hidden_states[-1], output.logits[:, -1]
    for _step in range(generation_config.max_new_tokens):
        probabilities, candidates = logits.softmax(dim=-1).topk(count)
        cache.batch_repeat_interleave(count)
        output = model(candidates.view(-1, 1), past_key_values=cache, output_hidden_states=True)
        hidden = output.hidden_states[-1].unflatten(0, (-1, count))  # [B, count, 1, D]
        alike = torch.cosine_similarity(hidden, past[:, None], dim=-1).amax(dim=-1)
        best = ((1 - alpha) * probabilities - alpha * alike).argmax(dim=-1)
        cache.batch_select_indices(batch * count + best)
        input_ids = torch.cat((input_ids, candidates[batch, best, None]), dim=1)
        past = torch.cat((past, hidden[batch, best]), dim=1)
        logits = output.logits[:, -1].unflatten(0, (-1, count))[batch, best]
    return input_ids


@families
def test_contrastive_search_through_a_function_of_ones_own(family: str) -> None:
    model = tiny_model(family)
    tokens = random_tokens(2, 60, seed=83)
    with torch.no_grad():
        expected = generate(model, tokens, custom_generate=contrastive_search)
        memcore.wrap(model, EVERYTHING)
        assert torch.equal(generate(model, tokens, custom_generate=contrastive_search), expected)


def test_modes_that_transformers_keeps_on_the_hub_say_so() -> None:
    model = memcore.wrap(tiny_model("llama"), SMALL)
    with pytest.raises(ValueError, match="transformers-community/contrastive-search"):
        generate(model, random_tokens(1, 80, seed=84), penalty_alpha=0.6, top_k=4)


def test_streamers_get_every_token(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = tiny_tokenizer()
    model = memcore.wrap(tiny_model("llama"), SMALL)
    tokens = random_tokens(1, 80, seed=85)
    want = tokenizer.decode(generate(model, tokens)[0, 80:])
    generate(model, tokens, streamer=TextStreamer(tokenizer, skip_prompt=True))
    assert capsys.readouterr().out.strip() == want
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    thread = threading.Thread(target=generate, args=(model, tokens), kwargs={"streamer": streamer})
    thread.start()
    assert "".join(streamer).strip() == want
    thread.join()


class StopsAt(StoppingCriteria):
    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


def test_generation_stops_where_it_is_told_to() -> None:
    tokenizer = tiny_tokenizer()
    model = memcore.wrap(tiny_model("llama"), SMALL)
    tokens = random_tokens(2, 80, seed=86)
    free = generate(model, tokens)
    criteria = StoppingCriteriaList([StopsAt(91)])
    assert torch.equal(generate(model, tokens, stopping_criteria=criteria), free[:, :91])
    word = tokenizer.decode(free[0, 85])
    stopped = generate(model, tokens[:1], stop_strings=[word], tokenizer=tokenizer)
    assert stopped.shape[1] <= 86
    assert torch.equal(stopped[0], free[0, : stopped.shape[1]])
    assert word in tokenizer.decode(stopped[0, -1])
    eos = int(free[0, 85])
    ended = generate(model, tokens, eos_token_id=eos)
    first = int((free[0, 80:] == eos).nonzero()[0])
    assert torch.equal(ended[0, 80 : 81 + first], free[0, 80 : 81 + first])
    assert not ended[0, 81 + first :].any()  # padding, while the other row goes on


def test_a_logits_processor_sees_the_whole_text() -> None:
    model = memcore.wrap(tiny_model("llama"), SMALL)
    lengths = []

    def note(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        lengths.append(input_ids.shape[1])
        return scores

    generate(model, random_tokens(1, 80, seed=87), max_new_tokens=3, logits_processor=LogitsProcessorList([note]))
    assert lengths == [80, 81, 82]


@pytest.mark.parametrize("kind", ["static", "sliding_window", "offloaded_static", "offloaded", "quantized"])
def test_caches_that_memory_cannot_live_in_are_refused(kind: str) -> None:
    if kind.startswith("offloaded") and not torch.cuda.is_available():
        pytest.skip("without a GPU transformers cannot make this cache")
    if kind == "quantized" and importlib.util.find_spec("optimum") is None:
        pytest.skip("without optimum-quanto transformers cannot make this cache")
    model = memcore.wrap(tiny_model("llama"), SMALL)
    tokens = random_tokens(1, 80, seed=88)
    with pytest.raises(memcore.UnsupportedCacheError, match=r"memory cannot live in; pass none, an empty DynamicCache"):
        generate(model, tokens, cache_implementation=kind)
    model.generation_config.cache_implementation = kind
    with pytest.raises(memcore.UnsupportedCacheError, match="memory cannot live in"):
        generate(model, tokens)


def test_continuous_batching_is_refused() -> None:
    model = memcore.wrap(tiny_model("llama"), SMALL)
    with pytest.raises(ValueError, match="memcore is not supported for continuous batching"):
        model.generate_batch([[3, 4, 5] * 30])


@families
def test_inference_mode_and_no_grad_can_share_a_cache(family: str) -> None:
    model = memcore.wrap(tiny_model(family), EVERYTHING)
    tokens = random_tokens(1, 120, seed=89)
    with torch.no_grad():
        expected = model(tokens).logits[:, 90:]
    with torch.inference_mode():
        cache = model(tokens[:, :90], use_cache=True).past_key_values
    with torch.no_grad():
        torch.testing.assert_close(
            model(tokens[:, 90:], past_key_values=copy.deepcopy(cache)).logits, expected, atol=1e-4, rtol=0
        )
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens[:, 90:], past_key_values=cache).logits, expected, atol=1e-4, rtol=0)


@families
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_loop_of_ones_own_equals_generate(family: str, side: str) -> None:
    model = memcore.wrap(tiny_model(family), EVERYTHING)
    batch = padded_batch([80, 47], side=side, seed=90)
    lengths = batch["attention_mask"].sum(dim=1)
    alone = [generate(model, row[mask.bool()][None])[0, n:] for row, mask, n in zip(
        batch["input_ids"], batch["attention_mask"], lengths, strict=True
    )]  # fmt: skip
    with torch.no_grad():
        output = model(**batch, use_cache=True)
        last = torch.tensor([79, 79]) if side == "left" else lengths - 1
        token = output.logits[torch.arange(2), last].argmax(dim=-1, keepdim=True)
        mask, positions, written = batch["attention_mask"], lengths[:, None], [token]
        while len(written) < 16:
            mask = torch.cat((mask, torch.ones_like(token)), dim=1)
            output = model(token, attention_mask=mask, position_ids=positions, past_key_values=output.past_key_values)
            token, positions = output.logits[:, -1].argmax(dim=-1, keepdim=True), positions + 1
            written.append(token)
    assert torch.equal(torch.cat(written, dim=1), torch.stack(alone))
