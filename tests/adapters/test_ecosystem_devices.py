"""Where a model's weights are and what they are made of: devices, offloading, dtypes, quantised weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from tiny_models import random_tokens, tiny_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import memcore
from memcore import MemoryConfig
from memcore.transfer import input_device

accelerate = pytest.importorskip("accelerate")

SMALL = MemoryConfig(window=32, chunk_size=8, sinks=4, top_k=2, query_tokens=6, question_tokens=5, retrieve_every=3)
EVERYTHING = attrs.evolve(SMALL, top_k=10_000, positions="original", retrieve_every=1)
TEXT, QUESTION = random_tokens(1, 100, seed=130), random_tokens(1, 7, seed=131)

load: Any = memcore.from_pretrained


def outcome(model: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, what is generated, and what a session answers."""
    with torch.no_grad():
        logits = model(TEXT.to(input_device(model))).logits
    written = model.generate(TEXT.to(input_device(model)), max_new_tokens=8, do_sample=False)
    session = memcore.Session(model, "text")
    session.ingest(TEXT)
    return logits, written, session.ask(QUESTION, max_new_tokens=8).token_ids


def assert_same(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    # Weights read from disk lie elsewhere in memory, which is enough for another order of sums.
    torch.testing.assert_close([each.cpu() for each in got], list(want), atol=1e-4, rtol=0)


@pytest.fixture
def expected() -> tuple[Tensor, Tensor, Tensor]:
    return outcome(memcore.wrap(tiny_model("gemma3_text"), SMALL))


def spread(first: str | int, second: str | int) -> dict[str, str | int]:
    """Return a device map with every other layer somewhere else."""
    layers = {f"model.layers.{index}": (first, second)[index % 2] for index in range(4)}
    return {"model.embed_tokens": first, **layers, "model.norm": first, "model.rotary_emb": first, "lm_head": first}


def test_layers_whose_weights_lie_on_disk(tmp_path: Path, expected: tuple[Tensor, ...]) -> None:
    memcore.wrap(tiny_model("gemma3_text"), SMALL).save_pretrained(tmp_path)
    model = load(tmp_path, device_map=spread("cpu", "disk"), offload_folder=tmp_path / "offloaded")
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu", "meta"}
    assert_same(outcome(model), expected)
    memcore.unwrap(model)
    with torch.no_grad():
        assert torch.equal(model(TEXT).logits, tiny_model("gemma3_text")(TEXT).logits)


def test_a_model_with_no_weight_in_memory(tmp_path: Path, expected: tuple[Tensor, ...]) -> None:
    model = accelerate.disk_offload(tiny_model("gemma3_text"), tmp_path, execution_device="cpu")
    assert model.device.type == "meta"
    assert_same(outcome(memcore.wrap(model, SMALL)), expected)


def test_a_model_that_is_spread_after_it_was_wrapped(tmp_path: Path, expected: tuple[Tensor, ...]) -> None:
    model = memcore.wrap(tiny_model("gemma3_text"), SMALL)
    model = accelerate.dispatch_model(model, spread("cpu", "disk"), main_device="cpu", offload_dir=tmp_path)
    assert_same(outcome(model), expected)


def test_device_map_auto(tmp_path: Path, expected: tuple[Tensor, ...]) -> None:
    memcore.wrap(tiny_model("gemma3_text"), SMALL).save_pretrained(tmp_path)
    model = load(tmp_path, device_map="auto")
    with torch.no_grad():
        torch.testing.assert_close(model(TEXT.to(model.device)).logits.cpu(), expected[0], atol=1e-3, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU beside the CPU")
def test_layers_on_two_devices(tmp_path: Path, expected: tuple[Tensor, ...]) -> None:
    memcore.wrap(tiny_model("gemma3_text"), SMALL).save_pretrained(tmp_path)
    model = load(tmp_path, device_map=spread("cpu", 0))
    torch.testing.assert_close(outcome(model)[0].cpu(), expected[0], atol=1e-3, rtol=0)
    with torch.no_grad():
        cache = model(TEXT, use_cache=True).past_key_values
    assert [layer.keys.device.type for layer in cache.layers] == ["cpu", "cuda"] * 2


def test_a_forward_that_was_replaced_later_is_not_torn_out() -> None:
    model = memcore.wrap(tiny_model("llama"), SMALL)
    accelerate.hooks.add_hook_to_module(model.get_decoder(), accelerate.hooks.ModelHook())
    with pytest.raises(
        memcore.UnsupportedModelError, match=r"was replaced after memcore.wrap.*remove_hook_from_module"
    ):
        memcore.unwrap(model)
    with torch.no_grad():
        model(TEXT)
    accelerate.hooks.remove_hook_from_module(model, recurse=True)
    assert not hasattr(memcore.unwrap(model), "memory")


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@torch.no_grad()
def test_a_cast_after_wrapping_is_a_cast_before(family: str, dtype: torch.dtype) -> None:
    # A cast rounds the frequencies of the rotation as well.
    before = memcore.wrap(tiny_model(family).to(dtype), SMALL)
    after = memcore.wrap(tiny_model(family), SMALL)
    cache = after.memory.new_cache()
    after(TEXT)
    after.to(dtype)
    expected = before(TEXT).logits
    assert torch.equal(after(TEXT).logits, expected)
    assert torch.equal(after(TEXT, past_key_values=cache).logits, expected)


def weights(model: nn.Module) -> dict[str, tuple[int, int, torch.dtype, bool]]:
    return {
        name: (each.data_ptr(), each._version, each.dtype, each.requires_grad)
        for name, each in [*model.named_parameters(), *model.named_buffers()]
    }


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_no_weight_is_touched(family: str) -> None:
    model = tiny_model(family)
    model.lm_head.weight.requires_grad_(False)
    before = weights(model)
    memcore.wrap(model, SMALL)
    with torch.no_grad():
        model(TEXT)
    assert weights(model) == before
    memcore.unwrap(model)
    assert weights(model) == before


class FourBitLinear(nn.Module):
    """Weights of four bits, two in a byte, as bitsandbytes keeps them: a parameter that is no float."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.shape, self.scale = weight.shape, float(weight.abs().max() / 7)
        levels = ((weight / self.scale).round() + 8).to(torch.uint8).flatten()
        self.weight = nn.Parameter(levels[0::2] << 4 | levels[1::2], requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        levels = torch.stack((self.weight >> 4, self.weight & 15), dim=-1).view(self.shape)
        return nn.functional.linear(x, ((levels.float() - 8) * self.scale).to(x.dtype))


def in_four_bits(model: Any) -> Any:
    for layer in model.get_decoder().layers:
        for part in (layer.self_attn, layer.mlp):
            for name, linear in list(part.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(part, name, FourBitLinear(linear))
    return model


def in_eight_bits(model: Any) -> Any:
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("quantise", [in_four_bits, in_eight_bits])
@torch.no_grad()
def test_quantised_weights_work_and_stay_as_they_are(quantise: Any) -> None:
    model = quantise(tiny_model("llama"))
    before, logits = weights(model), model(TEXT).logits
    memcore.wrap(model, EVERYTHING)
    # Eight-bit layers choose their scale by the largest number in a call, and a long text comes in several.
    torch.testing.assert_close(model(TEXT).logits, logits, atol=1e-4 if quantise is in_four_bits else 2, rtol=0)
    model.generate(TEXT, max_new_tokens=5)
    assert weights(model) == before
    assert torch.equal(memcore.unwrap(model)(TEXT).logits, logits)


@torch.no_grad()
def test_gates_work_beside_weights_that_are_quantised_or_put_away(tmp_path: Path) -> None:
    away = accelerate.disk_offload(tiny_model("llama"), tmp_path, execution_device="cpu")
    for plain in (in_four_bits(tiny_model("llama")), away):
        want = memcore.wrap(plain, SMALL)(TEXT).logits
        model: Any = memcore.wrap(memcore.unwrap(plain), SMALL, gate=True)
        gates = [parameter for name, parameter in model.named_parameters() if "memory_gate" in name]
        assert len(gates) == 2
        assert all(gate.dtype == torch.float32 and not gate.is_meta for gate in gates)
        torch.testing.assert_close(model(TEXT).logits, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("bits", [4, 8])
@torch.no_grad()
def test_weights_quantised_by_bitsandbytes(tmp_path: Path, bits: int) -> None:
    pytest.importorskip("bitsandbytes")  # runs on CPUs too
    tiny_model("llama", hidden_size=256, intermediate_size=256).save_pretrained(tmp_path)  # it packs in blocks
    quantised = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantised, device_map="auto")
    text = TEXT.to(model.device)
    model.generate(text, max_new_tokens=2)  # it packs some weights anew when they are first used
    before, short, long = weights(model), model(text[:, :36]).logits, model(text).logits
    memcore.wrap(model, EVERYTHING)
    assert torch.equal(model(text[:, :36]).logits, short)
    if bits == 4:  # eight-bit layers scale what they are given by the largest number in a call
        torch.testing.assert_close(model(text).logits, long, atol=1e-3, rtol=0)
    outcome(model)
    assert weights(model) == before
    assert torch.equal(memcore.unwrap(model)(text).logits, long)
