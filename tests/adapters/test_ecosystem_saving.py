"""save_pretrained and from_pretrained: the memory configuration goes with the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import random_tokens, tiny_model
from transformers import AutoModelForCausalLM, PreTrainedModel

import memcore
from memcore import MemoryConfig
from memcore.fingerprint import model_fingerprint

SMALL = MemoryConfig(
    window=32, chunk_size=8, sinks=4, top_k=2, layers=(1,), embedder_options={"block": 4}, question_tokens=0
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a model that was saved while it had a memory."""
    wrap(tiny_model("llama"), SMALL).save_pretrained(tmp_path)
    return tmp_path


load: Any = memcore.from_pretrained
wrap: Any = memcore.wrap


def logits(model: PreTrainedModel, tokens: int = 100) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(random_tokens(1, tokens, seed=70)).logits
    return found


def test_the_configuration_is_saved_with_the_weights_and_found_again(saved: Path) -> None:
    model = load(saved)
    assert model.memory.config == SMALL
    assert torch.equal(logits(model), logits(wrap(tiny_model("llama"), SMALL)))


def test_wrapping_a_loaded_model_uses_what_it_was_saved_with(saved: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(saved)
    assert wrap(model).memory.config == SMALL
    memcore.unwrap(model)
    assert memcore.AutoAdapter().wrap(model).memory.config == SMALL


def test_what_is_given_takes_precedence_over_what_was_saved(saved: Path) -> None:
    assert load(saved, top_k=5).memory.config == attrs.evolve(SMALL, top_k=5)
    assert load(saved, MemoryConfig(window=64, chunk_size=8)).memory.config.window == 64
    model: Any = AutoModelForCausalLM.from_pretrained(saved)
    assert wrap(model, sinks=2).memory.config == attrs.evolve(SMALL, sinks=2)
    memcore.unwrap(model)
    assert wrap(model, {"window": 2048}).memory.config == MemoryConfig(window=2048).fitted(4096)


def test_arguments_for_transformers_reach_it(saved: Path) -> None:
    model = load(saved, dtype="bfloat16", attn_implementation="eager")
    assert model.dtype == torch.bfloat16
    assert memcore.unwrap(model).config._attn_implementation == "eager"


def test_a_model_saved_without_a_memory_gets_the_defaults(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    assert load(tmp_path).memory.config == MemoryConfig().fitted(4096)


def test_without_memcore_a_saved_model_is_an_ordinary_one(saved: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved)
    assert not hasattr(model, "memory")
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(logits(model), logits(tiny_model("llama")))


def test_unwrap_takes_the_configuration_away_again(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)  # which notes the dtype and the class in the configuration
    before = model.config.to_dict()
    memcore.unwrap(wrap(model, SMALL)).save_pretrained(tmp_path)
    assert model.config.to_dict() == before
    assert "memcore" not in json.loads((tmp_path / "config.json").read_text())


def test_unwrap_leaves_what_the_model_was_loaded_with(saved: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved)
    before = model.config.to_dict()
    memcore.unwrap(wrap(model, window=64))
    assert model.config.to_dict() == before


def test_a_configuration_as_plain_values_is_json() -> None:
    config = MemoryConfig(
        backend_options={"path": Path("a"), "paths": [Path("b")], "inner": {"path": Path("c"), "n": 1}}
    )
    stated = config.to_dict()
    assert stated["backend_options"] == {"path": "a", "paths": ["b"], "inner": {"path": "c", "n": 1}}
    assert json.loads(json.dumps(stated)) == stated


def test_a_path_among_the_options_is_saved_as_text(tmp_path: Path) -> None:
    pytest.importorskip("lmdb")
    model = wrap(tiny_model("llama"), SMALL, backend="lmdb", backend_options={"path": tmp_path / "memory"})
    model.save_pretrained(tmp_path / "model")
    memcore.unwrap(model)
    stated = json.loads((tmp_path / "model" / "config.json").read_text())["memcore"]
    assert stated["backend_options"] == {"path": str(tmp_path / "memory")}
    loaded = load(tmp_path / "model")
    assert loaded.memory.bank.persistent
    memcore.unwrap(loaded)


def test_the_fingerprint_of_a_model_is_the_same_with_and_without_a_memory(saved: Path) -> None:
    model = tiny_model("llama")
    plain = model_fingerprint(model)
    assert model_fingerprint(wrap(model, SMALL)) == plain
    assert model_fingerprint(load(saved, window=64)) == plain


@pytest.mark.parametrize("damage", [{"windows": 3}, {"window": "wide"}, "all of it"], ids=str)
def test_a_saved_configuration_that_cannot_be_used_is_named(saved: Path, damage: Any) -> None:
    file = saved / "config.json"
    stated = json.loads(file.read_text())
    stated["memcore"] = damage if isinstance(damage, str) else {**stated["memcore"], **damage}
    file.write_text(json.dumps(stated))
    with pytest.raises(memcore.ConfigError, match=r"that the model was saved with cannot be used.*pass another"):
        load(saved)
    load(saved, SMALL)


def test_a_bad_configuration_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(memcore.ConfigError, match="topk"):
        load("no/such-model", {"topk": 3})


def test_what_is_wrong_with_what_is_given_is_not_said_of_what_was_saved(saved: Path) -> None:
    with pytest.raises(memcore.ConfigError, match=r"^window must be"):
        load(saved, window="wide")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(memcore.UnsupportedModelError, match="there is no folder"):
        load(tmp_path / "nowhere")


def test_a_model_of_a_base_class_keeps_it_too(tmp_path: Path) -> None:
    wrap(tiny_model("llama").base_model, SMALL).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["memcore"]["window"] == 32


@pytest.mark.parametrize("shards", [False, True])
def test_gates_that_were_trained_are_loaded(tmp_path: Path, shards: bool) -> None:
    model = wrap(tiny_model("llama"), SMALL, gate=True)
    gates = {name: each for name, each in model.named_parameters() if "memory_gate" in name}
    assert gates
    for each in gates.values():
        torch.nn.init.normal_(each)
    model.save_pretrained(tmp_path, max_shard_size="20KB" if shards else "5GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == shards
    loaded = load(tmp_path)
    assert all(torch.equal(dict(loaded.named_parameters())[name], each) for name, each in gates.items())
    assert torch.equal(logits(loaded), logits(model))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(plain), logits(tiny_model("llama")))


def test_an_unknown_weight_of_a_checkpoint_is_left_alone(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    save_file({**weights, "model.unknown": torch.ones(1)}, saved / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(logits(load(saved)), logits(wrap(tiny_model("llama"), SMALL)))
