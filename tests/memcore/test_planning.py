"""Planning: amounts as they are written, known shapes, the rule for backends, and configurations that can be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
from tiny_models import tiny_config, tiny_model

import memcore
from memcore import ConfigError, MemoryConfig, UnsupportedModelError
from memcore.planning.architectures import ARCHITECTURES
from memcore.planning.costs import chunks_of, costs_of
from memcore.planning.model_shape import ModelShape, find_config, model_shape
from memcore.planning.plan import FEW_CHUNKS, GPU_ITSELF, PROCESS, Budgets, Plan, make_plan
from memcore.planning.sizes import parse_bytes, parse_tokens, show_bytes, show_tokens
from memcore.planning.toml import to_toml

GIB = 1 << 30
PLENTY = Budgets(gpu=None, ram=1 << 50, disk=1 << 50)
SMALL = MemoryConfig(window=32, chunk_size=8, top_k=2)


def shape_of(name: str, **memory: Any) -> ModelShape:
    return model_shape(find_config(name)[0], MemoryConfig(**memory))


@pytest.fixture(scope="module")
def llama() -> ModelShape:
    return shape_of("llama-3-8b")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("4096", 4096),
        ("4k", 4000),
        ("128K", 128_000),
        ("1.5M", 1_500_000),
        ("4Ki", 4096),
        ("10_000", 10_000),
        ("2 k", 2000),
    ],
)
def test_tokens_are_counted_in_thousands_unless_it_says_otherwise(text: str, tokens: int) -> None:
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize("text", ["", "k", "1GiB", "0", "1.2345k", "-3", "many"])
def test_what_is_no_number_of_tokens_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="a number of tokens is written"):
        parse_tokens(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GiB", 24 * GIB), ("24GB", 24 * 10**9), ("512 MiB", 512 << 20), ("1.5TB", 15 * 10**11), ("100b", 100)],
)
def test_bytes_have_a_unit(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["24", "24G", "GiB", "0GB", "24 gigs"])
def test_bytes_without_a_unit_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="24GiB"):
        parse_bytes(text)


@pytest.mark.parametrize("tokens", [1, 999, 1_000, 128_000, 131_072, 1_000_000, 1_500_000, 10_000_000])
def test_tokens_that_are_shown_are_read_again(tokens: int) -> None:
    assert parse_tokens(show_tokens(tokens)) == tokens


def test_bytes_are_shown_in_binary_units() -> None:
    assert [show_bytes(each) for each in (12, 2048, 3 << 20, 15 * GIB, 1 << 41)] == [
        "12 B",
        "2.0 KiB",
        "3.0 MiB",
        "15.0 GiB",
        "2.00 TiB",
    ]


PUBLISHED = {
    "deepseek-v3": 671_026_404_352,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "gpt2": 124_439_808,
    "gpt-oss-20b": 20_914_757_184,
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "mistral-7b": 7_248_023_552,
    "openllama-3b": 3_426_473_600,
    "phi-4": 14_659_507_200,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
    "smollm3-3b": 3_075_098_624,
}


def test_known_shapes_have_as_many_parameters_as_the_published_weights() -> None:
    found = {name: model_shape(find_config(name)[0], MemoryConfig()).parameters for name in ARCHITECTURES}
    assert found == PUBLISHED


def test_bytes_of_a_token_are_those_one_adds_up_by_hand(llama: ModelShape) -> None:
    costs = costs_of(llama, llama.config, tokens=1_000_000)
    keys_and_values = 32 * 2 * 8 * 128 * 2  # layers, keys and values, heads, numbers, bytes
    of_tokens = 32 * (8 + (8 + 8) / 64)  # ids; position and length of each chunk
    assert costs.bank.payload / costs.stored == keys_and_values + of_tokens
    assert costs.bank.vectors / costs.stored == 32 * 8 * 128 * 4 / 8  # float32, for every 8 tokens
    assert costs.full_cache == 1_000_000 * keys_and_values
    assert costs.weights == 2 * 8_030_261_248


def test_operations_are_those_one_adds_up_by_hand(llama: ModelShape) -> None:
    costs = costs_of(llama, llama.config, tokens=1_000_000)
    of_a_key = 32 * 32 * 128 * 2 * 2  # layers, heads, numbers; a product and a sum, of two operations a number
    assert costs.operations.full == of_a_key * 1_000_000
    assert costs.operations.memory == of_a_key * (4 + 2048 + 2048)
    vectors = 32 * costs.chunks * 8
    assert costs.operations.search == 2 * vectors * 32 * 128  # a query of 32 heads, each compared in its own slot
    assert costs.operations.rerank == 2 * 32 * (32 * 8) * 128 * 64 * 64 / 2


def test_a_batch_takes_as_much_for_every_sequence(llama: ModelShape) -> None:
    one, four = (costs_of(llama, llama.config, tokens=50_000, batch=batch) for batch in (1, 4))
    assert four.weights == one.weights
    assert four.bank.total == 4 * one.bank.total
    assert four.local.window == 4 * one.local.window
    assert four.full_cache == 4 * one.full_cache
    assert four.per_token == one.per_token


def test_the_window_is_that_of_a_model_trained_for_less() -> None:
    assert shape_of("openllama-3b").config.window == 1024
    assert shape_of("llama-3-8b").config.window == 2048


def test_what_wrap_warns_of_is_told() -> None:
    assert any("more than the 2048" in note for note in shape_of("openllama-3b", window=2048).notes)
    assert not shape_of("llama-3-8b").notes


@pytest.mark.parametrize("given", ["folder", "file"])
def test_a_configuration_is_read_from_a_folder_or_a_file(tmp_path: Path, given: str) -> None:
    tiny_config("llama").save_pretrained(tmp_path)
    config, source = find_config(str(tmp_path if given == "folder" else tmp_path / "config.json"))
    assert config.model_type == "llama"
    assert str(tmp_path) in source


def test_a_folder_comes_before_a_known_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_config("llama").save_pretrained("llama-3-8b")
    assert find_config("llama-3-8b")[0].hidden_size == 48


def test_an_unknown_model_is_told_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnsupportedModelError, match=r"'some/meta-llama-3-8b'.*'llama-3-8b', or another.*smollm3-3b"):
        find_config("some/meta-llama-3-8b")


@pytest.mark.parametrize("content", ["not JSON", "{}", "[]", '{"model_type": "nonsense"}'])
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match="cannot read the configuration of"):
        find_config(str(tmp_path))


def test_a_model_without_global_attention_is_refused_as_by_wrap() -> None:
    with pytest.raises(UnsupportedModelError, match="no layer with global attention"):
        model_shape(tiny_config("mistral", sliding_window=16), SMALL)


def test_a_family_without_an_adapter_is_refused_as_by_wrap() -> None:
    from transformers import BloomConfig, T5Config

    with pytest.raises(UnsupportedModelError, match="bypasses the transformers attention registry"):
        model_shape(BloomConfig(hidden_size=16, n_head=2, n_layer=1, vocab_size=20), SMALL)
    with pytest.raises(UnsupportedModelError, match="cannot make a decoder"):
        model_shape(T5Config(d_model=16, num_layers=1, vocab_size=20), SMALL)


def test_the_configuration_given_stays_as_it_was() -> None:
    config = tiny_config("llama")
    before = config.to_dict()
    assert model_shape(config, SMALL) == model_shape(config, SMALL)
    assert config.to_dict() == before


def test_layers_that_the_model_does_not_have_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot have a memory in this model"):
        model_shape(tiny_config("llama"), attrs.evolve(SMALL, layers=(7,)))


def test_a_dtype_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no dtype 'int8'"):
        model_shape(tiny_config("llama"), SMALL, dtype="int8")


def test_a_text_that_fits_the_window_needs_no_memory(llama: ModelShape) -> None:
    with pytest.raises(ConfigError, match=r"2,052 tokens fit the window .* nothing leaves it"):
        costs_of(llama, llama.config, tokens=2052)
    assert costs_of(llama, llama.config, tokens=2053).chunks == 1


def test_learned_positions_end_somewhere() -> None:
    with pytest.raises(ConfigError, match="reads no text longer than 1,024 tokens"):
        costs_of(shape_of("gpt2"), MemoryConfig(), tokens=2000)


def planned(shape: ModelShape, tokens: int, **budgets: Any) -> Plan:
    return make_plan(shape, tokens=tokens, budgets=attrs.evolve(PLENTY, **budgets))


def test_few_chunks_are_compared_one_by_one_and_many_by_an_index(llama: ModelShape) -> None:
    few = FEW_CHUNKS * 64 + llama.config.window_length + 4
    assert planned(llama, few).config.backend == "exact"
    assert planned(llama, few + 1).config.backend == "faiss"


def test_without_faiss_the_index_is_hnswlib_and_without_that_none(
    llama: ModelShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memcore.plugins import PluginRegistry

    load, missing = PluginRegistry.load_component, ["faiss"]

    def without(self: PluginRegistry, kind: Any, name: str) -> Any:
        if name in missing:
            raise memcore.MissingDependencyError(name)
        return load(self, kind, name)

    pytest.importorskip("hnswlib")
    monkeypatch.setattr(PluginRegistry, "load_component", without)
    assert planned(llama, 1_000_000).config.backend == "hnswlib"
    missing.append("hnswlib")
    assert planned(llama, 1_000_000).config.backend == "exact"


def test_where_an_index_has_no_room_beside_the_memory_there_is_none(llama: ModelShape) -> None:
    with_index = planned(llama, 1_000_000)
    room = with_index.places[0].needed
    assert planned(llama, 1_000_000, ram=room).config.backend == "faiss"
    assert planned(llama, 1_000_000, ram=room - 1).config.backend == "exact"


def test_what_does_not_fit_ram_is_on_disk(llama: ModelShape) -> None:
    found = planned(llama, 1_000_000, ram=64 * GIB)
    assert found.config.backend == "lmdb"
    assert found.fits
    assert [place.name for place in found.places] == ["RAM", "disk"]


def test_a_backend_that_is_asked_for_stays(llama: ModelShape) -> None:
    found = make_plan(llama, tokens=10_000_000, budgets=PLENTY, choose_backend=False)
    assert found.config.backend == "exact"


def test_the_model_is_on_the_gpu_if_there_is_one_and_else_in_ram(llama: ModelShape) -> None:
    apart, together = planned(llama, 100_000, gpu=24 * 10**9), planned(llama, 100_000)
    assert [place.name for place in apart.places] == ["GPU", "RAM"]
    (ram,) = together.places
    assert ram.needed == sum(place.needed for place in apart.places) - GPU_ITSELF
    assert ram.parts["Python and torch, roughly"] == PROCESS


def test_llama_3_8b_with_ten_million_tokens_fits_a_card_of_24_gb_where_full_attention_to_128_thousand_does_not(
    llama: ModelShape,
) -> None:
    for tokens in (128_000, 1_000_000, 10_000_000):
        found = planned(llama, tokens, gpu=24 * 10**9, ram=64 * 10**9)
        assert found.fits
        assert not found.full_attention_fits(24 * 10**9)
    assert planned(llama, 10_000, gpu=24 * 10**9).full_attention_fits(24 * 10**9)


def test_a_card_that_is_too_small_by_the_window_is_told_one_that_fits() -> None:
    shape = shape_of("llama-3-8b", window=65_536)
    found = planned(shape, 1_000_000, gpu=24 * 10**9)
    assert not found.fits
    (line,) = found.advice
    window = int(line.partition("--window ")[2].rstrip(")"))
    smaller = attrs.evolve(shape, config=attrs.evolve(shape.config, window=window))
    assert planned(smaller, 1_000_000, gpu=24 * 10**9).fits


def test_a_card_that_is_too_small_by_the_weights_is_told_so(llama: ModelShape) -> None:
    found = planned(llama, 1_000_000, gpu=8 * GIB)
    assert not found.fits
    assert "the weights take 15.0 GiB of 8.0 GiB" in found.advice[0]
    assert planned(llama.with_weights(5 * GIB), 1_000_000, gpu=8 * GIB).fits


def test_a_disk_that_is_too_small_is_told_what_would_fit(llama: ModelShape) -> None:
    found = planned(llama, 1_000_000, ram=64 * GIB, disk=100 * GIB)
    assert not found.fits
    assert found.advice[0] == "the memory fits with --compression int8"
    tokens = parse_tokens(found.advice[1].split()[3])
    assert 0.95 < tokens / 720_000 < 1.05
    assert planned(llama, tokens, ram=32 * GIB, disk=100 * GIB).fits


def test_what_nothing_makes_fit_is_told_how_many_tokens_do(llama: ModelShape) -> None:
    found = planned(llama, 10_000_000, ram=20 * GIB, disk=2 * GIB)
    assert not found.fits
    assert [line for line in found.advice if line.startswith("as it is,")]
    assert not [line for line in found.advice if "fits with" in line]


def test_searches_that_wait_for_the_disk_are_told(llama: ModelShape) -> None:
    slow, quick = (planned(llama, tokens, gpu=24 * GIB, ram=64 * GIB) for tokens in (10_000_000, 1_000_000))
    assert slow.fits
    assert "it will wait for the disk; --set embedder=mean has fewer" in slow.advice[0]
    assert not quick.advice


@pytest.mark.parametrize(
    ("tokens", "ram", "changes"),
    [
        (400, 1 << 40, {}),
        (400, 1 << 40, {"backend_options": {"compression": "int8"}}),
        (100_000, 1 << 40, {"layers": (1,), "positions": "zero"}),
        (400, 1 << 20, {"embedder_options": {"block": 4}, "memory_layer": 0, "capacity": 800}),
        (400, 1 << 20, {"backend_options": {"path": 'a "quoted" folder', "compression": "int8"}}),
    ],
)
def test_the_configuration_that_is_printed_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: int, ram: int, changes: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = changes.get("backend_options", {})
    if ram < PROCESS:
        changes = {**changes, "backend": "lmdb"}
    shape = model_shape(tiny_config("llama"), attrs.evolve(SMALL, **changes))
    found = make_plan(shape, tokens=tokens, budgets=PLENTY, choose_backend="path" not in options and ram > PROCESS)
    (tmp_path / "memory.toml").write_text(to_toml(found.config), encoding="utf-8")
    model = memcore.wrap(tiny_model("llama"), "memory.toml")
    assert model.memory.config == found.config
    memcore.unwrap(model)


def test_a_configuration_survives_toml() -> None:
    config = MemoryConfig(
        backend_options={"a b": "\x7f\n\"'\\é", "list": [1, 2.5, True]}, layers=(0, 2), gate=True, rerank=0, window=None
    )
    (again,) = [MemoryConfig.from_dict(_toml(to_toml(config)))]
    assert again == config


def _toml(text: str) -> dict[str, Any]:
    import tomllib

    return tomllib.loads(text)


@pytest.mark.parametrize(("tokens", "chunks"), [(36, 0), (37, 1), (44, 1), (45, 2)])
def test_whole_chunks_leave(tokens: int, chunks: int) -> None:
    assert chunks_of(tokens, SMALL) == chunks
