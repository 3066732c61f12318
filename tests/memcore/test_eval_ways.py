"""Ways of reading: what memory a model has in each, and that it is given back as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from cli_runner import run
from tiny_models import random_tokens, tiny_model
from torch import Tensor

import memcore
from memcore import EvaluationError, MemoryConfig
from memcore.evaluation.losses import cached_losses
from memcore.evaluation.ways import WAYS, check_ways, memory_for, read_as, seen
from memcore.model_source import load_model
from memcore.training.saved import save_trained
from memcore.training.trainable import TrainingPlan, make_trainable

SMALL = MemoryConfig(window=32, chunk_size=8, sinks=4, top_k=2)
GATED = attrs.evolve(SMALL, memory_layer=0, gate=True)
TEXT = random_tokens(1, 120, seed=1)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(TEXT).logits
    return found


def trained(model: Any) -> Any:
    """Wrap a model and change what MemLong trains, gates included."""
    memcore.wrap(model, GATED)
    make_trainable(model, TrainingPlan(lora_rank=2))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def test_each_way_has_its_memory() -> None:
    found = {way: memory_for(way, SMALL) for way in (*WAYS, "memory:hnswlib", "memory:exact")}
    assert found["window"] is found["full"] is None
    assert found["streaming"] == attrs.evolve(SMALL, layers=())
    assert found["random"] == attrs.evolve(SMALL, embedder="random", rerank=0)
    assert found["memory"] == found["memory:exact"] == SMALL
    assert found["memory:hnswlib"] == attrs.evolve(SMALL, backend="hnswlib")


def test_a_backend_that_is_configured_keeps_its_options() -> None:
    config = attrs.evolve(SMALL, backend="hnswlib", backend_options={"exact_below": 0})
    assert memory_for("memory:hnswlib", config) == config
    assert memory_for("memory:exact", config) == SMALL


def test_what_could_not_be_done_is_found_at_once() -> None:
    check_ways([*WAYS], SMALL)
    for ways, says in ((["all"], "no way of reading 'all'"), (["full", "full"], "given once")):
        with pytest.raises(EvaluationError, match=says):
            check_ways(ways, SMALL)
    with pytest.raises(memcore.ConfigError, match="path"):
        check_ways(["memory:lmdb"], SMALL)


@pytest.mark.parametrize(("tokens", "expected"), [(31, 31), (32, 32), (33, 32), (100, 32)])
def test_a_window_sees_the_first_and_the_last_tokens(tokens: int, expected: int) -> None:
    ids = torch.arange(tokens)[None]
    found = seen(ids, "window", SMALL)
    assert found.shape == (1, expected)
    assert (int(found[0, 0]), int(found[0, -1])) == (0, tokens - 1)
    assert int(found[0, 1]) == tokens - expected + 1
    assert seen(ids, "memory", SMALL) is ids


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_is_wrapped_keeps_its_gates(way: str) -> None:
    model = trained(tiny_model("llama"))
    expected = logits(model)
    with read_as(model, way, GATED):
        assert hasattr(model, "memory") is (way not in ("window", "full"))
        inside = logits(model)
    assert torch.equal(inside, expected) is (way == "memory")
    assert model.memory.config == GATED
    assert torch.equal(logits(model), expected)


def test_a_plain_model_is_plain_again_whatever_happens() -> None:
    model = tiny_model("llama")
    expected = logits(model)

    def interrupted() -> None:
        with read_as(model, "memory", SMALL):
            assert not torch.equal(logits(model), expected)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not hasattr(model, "memory")
    assert torch.equal(logits(model), expected)


def test_the_command_evaluates_trained_weights_with_their_memory(tiny_folder: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{n * n % 90}" for n in range(200)))
    model, tokenizer = load_model(tiny_folder, device="cpu")
    save_trained(trained(model), tmp_path / "trained")
    arguments = ["eval", "ppl", tiny_folder, "--file", str(text), "--context", "150", "--scored", "50", "--way", "full",
                 "--way", "memory", "--device", "cpu"]  # fmt: skip

    def losses(output: str, *more: str) -> list[float]:
        result = run(*arguments, "--output", str(tmp_path / output), *more)
        assert result.exit_code == 0, result.output
        record = json.loads((tmp_path / output / "ppl.json").read_text())
        assert record["settings"]["config"]["window"] == (48 if "48" in more else 32)
        return [each["losses"]["150"] for each in record["results"].values()]

    ids = tokenizer(text.read_text(), return_tensors="pt")["input_ids"][:, :150]
    loaded: Any = memcore.load_trained(tiny_folder, tmp_path / "trained", merge=True)
    want = float(cached_losses(loaded, ids, [(100, 150)], piece=64)[100:].mean())
    plain = float(cached_losses(memcore.unwrap(loaded), ids, [(100, 150)], piece=64)[100:].mean())
    assert losses("trained-results", "--trained", str(tmp_path / "trained")) == pytest.approx([plain, want], abs=1e-5)
    untrained = losses("untrained", "--window", "32", "--set", "chunk_size=8", "--set", "top_k=2")
    assert untrained != pytest.approx([plain, want], abs=1e-2)
    wider = losses("wider", "--trained", str(tmp_path / "trained"), "--window", "48")
    assert wider[0] == pytest.approx(plain, abs=1e-5)
    assert wider[1] != pytest.approx(want, abs=1e-4)
