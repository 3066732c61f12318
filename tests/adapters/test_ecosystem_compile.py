"""torch.compile: what surrounds memory is compiled, memory runs as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tiny_models import random_tokens, tiny_model
from torch.fx import GraphModule

import memcore
from memcore import MemoryConfig

SMALL = MemoryConfig(window=32, chunk_size=8, sinks=4, top_k=2, query_tokens=6, question_tokens=5, retrieve_every=3)

families = pytest.mark.parametrize("family", ["llama", "gemma3_text"])  # without and with sliding layers


@pytest.fixture(autouse=True)
def _no_graphs_of_other_tests() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Counter:
    """A backend that compiles nothing and counts what it is given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


def generate(model: Any) -> torch.Tensor:
    tokens: torch.Tensor = model.generate(random_tokens(1, 80, seed=110), max_new_tokens=20, do_sample=False)
    return tokens


@families
@torch.no_grad()
def test_a_compiled_model_gives_the_same_logits_short_and_long(family: str) -> None:
    model = memcore.wrap(tiny_model(family), SMALL)
    compiled: Any = torch.compile(model, backend="aot_eager")
    for length in (20, 100, 101):
        tokens = random_tokens(2, length, seed=111)
        torch.testing.assert_close(compiled(tokens).logits, model(tokens).logits)


@families
def test_a_compiled_decode_step_writes_the_same_and_is_compiled_once(family: str) -> None:
    model = memcore.wrap(tiny_model(family), SMALL)
    want = generate(model)
    counter = Counter()
    model.forward = torch.compile(model.forward, backend=counter)
    assert torch.equal(generate(model), want)
    graphs = counter.graphs
    assert torch.equal(generate(model), want)
    assert counter.graphs == graphs > 0


def test_parts_of_layers_can_be_compiled() -> None:
    model = memcore.wrap(tiny_model("llama"), SMALL)
    want = generate(model)
    counter = Counter()
    for layer in model.get_decoder().layers:
        layer.mlp.compile(backend=counter)
    assert torch.equal(generate(model), want)
    assert counter.graphs > 0


def test_a_compiled_model_trains() -> None:
    model = memcore.wrap(tiny_model("llama").train(), SMALL)
    tokens = random_tokens(1, 100, seed=112)
    gradients = []
    for each in (model, torch.compile(model, backend="aot_eager")):
        model.zero_grad()
        each(tokens, labels=tokens).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0])


@torch.no_grad()
def test_one_graph_for_the_whole_model_is_refused() -> None:
    model = memcore.wrap(tiny_model("llama"), SMALL)
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="disable"):
        compiled(random_tokens(1, 100, seed=113))
