"""``memcore plan`` as a user meets it, and the page that shows what it prints."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_runner import run
from tiny_models import tiny_config, tiny_model

import memcore

PAGE = (Path(__file__).parents[2] / "docs" / "costs.md").read_text(encoding="utf-8")
ROOMY = ("--gpu", "24GB", "--ram", "64GB", "--disk", "2TB")


def toml_of(output: str) -> str:
    """Return the configuration that was printed."""
    return output[output.index("\n# ") :]


def test_it_prints_what_fits_and_the_configuration_to_use() -> None:
    result = run("plan", "llama-3-8b", "--tokens", "1M", "--window", "4k", *ROOMY)
    assert result.exit_code == 0, result.output
    assert "8,030,261,248 parameters, bfloat16; 32 of 32 layers remember" in result.output
    assert re.search(r"GPU of 22\.4 GiB +yes", result.output)
    assert re.search(r"full attention, GPU +no", result.output)
    assert 'backend = "lmdb"' in toml_of(result.output)
    assert "window = 4000" in toml_of(result.output)


def test_what_it_prints_can_be_given_to_wrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_config("llama").save_pretrained("model")
    options = ("--window", "64", "--set", "chunk_size=8", "--gpu", "none", "--ram", "8GiB", "--compression", "int8")
    result = run("plan", "model", "--tokens", "10k", *options)
    assert result.exit_code == 0, result.output
    Path("memory.toml").write_text(toml_of(result.output), encoding="utf-8")
    config = memcore.wrap(tiny_model("llama"), "memory.toml").memory.config
    assert (config.window, config.chunk_size, config.backend_options) == (64, 8, {"compression": "int8"})


def test_json_has_everything() -> None:
    result = run("plan", "qwen2.5-0.5b", "--tokens", "128k", "--tokens", "1M", *ROOMY, "--json")
    found = json.loads(result.output)
    assert found["model"]["parameters"] == 494_032_768
    assert [each["tokens"] for each in found["plans"]] == [128_000, 1_000_000]
    for each in found["plans"]:
        assert each["fits"]
        assert memcore.MemoryConfig.from_dict(each["config"]).window == 2048
        for place in each["places"]:
            assert all(re.fullmatch("[a-z_]+", part) for part in place["parts"])
            assert place["needed"] == sum(place["parts"].values()) <= place["budget"]


def test_what_does_not_fit_is_said_and_fails() -> None:
    result = run("plan", "llama-3-8b", "--gpu", "12GB", "--ram", "64GB", "--disk", "100GB")
    assert result.exit_code == 1
    assert "1M tokens do not fit (GPU, disk)." in result.output
    assert "the weights take 15.0 GiB of 11.2 GiB" in result.output
    assert "the memory fits with --compression int8" in result.output
    assert "backend =" not in result.output


def test_quantised_weights_are_given_by_their_size() -> None:
    assert run("plan", "llama-3-8b", "--weights", "5GiB", "--gpu", "12GB", *ROOMY[2:]).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["llama-3-8b", "--tokens", "2k"], "2,000 tokens fit the window (2,048)"),
        (["llama-3-8b", "--tokens", "many"], "a number of tokens is written 4096, 128k"),
        (["llama-3-8b", "--gpu", "24"], "a number of bytes is written 24GiB"),
        (["llama-3-8b", "--compression", "int4"], "compression"),
        (["llama-3-8b", "--window", "100"], "window (100)"),
        (["llama-3-8b", "--backend", "nope"], "nope"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str) -> None:
    result = run("plan", *arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_backend_that_is_named_is_used(tmp_path: Path) -> None:
    for given, backend in ((["--backend", "exact"], "exact"), (["--path", str(tmp_path)], "lmdb")):
        result = run("plan", "gemma-3-270m", *given, *ROOMY, "--json")
        assert json.loads(result.output)["plans"][0]["config"]["backend"] == backend


def test_without_a_model_the_known_ones_are_listed() -> None:
    result = run("plan", "--json")
    found: dict[str, Any] = {each["name"]: each for each in json.loads(result.output)["models"]}
    assert found["gpt2"]["bytes"] is None
    llama = found["llama-3-8b"]["bytes"]
    assert llama["memory_in_int8"] < llama["full_attention"] < llama["memory"]
    assert 0 < llama["per_token"] < 2**20


def test_the_known_ones_are_listed_in_the_dtype_that_is_asked_for() -> None:
    found = {each["name"]: each for each in json.loads(run("plan", "--dtype", "float32", "--json").output)["models"]}
    assert found["llama-3-8b"]["dtype"] == "float32"
    assert found["llama-3-8b"]["weight_bytes"] == 4 * found["llama-3-8b"]["parameters"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (ROOMY, "--gpu, --ram, --disk"),
        (("--weights", "5GiB", "--batch", "2"), "--weights, --batch"),
        (("--tokens", "1M", "--tokens", "2M"), "more than one --tokens"),
    ],
)
def test_what_the_list_of_known_ones_has_no_use_for_is_refused(arguments: tuple[str, ...], named: str) -> None:
    result = run("plan", *arguments)
    assert result.exit_code == 1
    assert f"no use for {named}: name a model" in result.output


@pytest.mark.skipif(sys.platform != "linux", reason="needs a disk without room")
def test_the_disk_that_counts_is_the_one_that_the_memory_goes_to() -> None:
    common = ("plan", "gemma-3-270m", "--gpu", "none", "--ram", "64GB", "--json")
    (elsewhere,) = json.loads(run(*common, "--path", "/proc/none/memory").output)["plans"]
    assert [(place["budget"], place["fits"]) for place in elsewhere["places"] if place["name"] == "disk"] == [
        (0, False)
    ]


def shown() -> list[tuple[str, str]]:
    """Return the commands on the page, and what it says that they print."""
    return re.findall(r"^    \$ (memcore plan.*)\n((?:(?:    .*)?\n)+)", PAGE, flags=re.MULTILINE)


@pytest.mark.parametrize(("command", "output"), shown(), ids=[command for command, _ in shown()])
def test_the_page_on_costs_shows_what_the_command_prints(command: str, output: str) -> None:
    printed = run(*shlex.split(command)[1:]).output
    expected = "\n".join(line.removeprefix("    ").rstrip() for line in output.splitlines())
    assert "\n".join(line.rstrip() for line in printed.splitlines()).strip() == expected.strip()


def test_the_page_on_costs_shows_commands() -> None:
    assert len(shown()) >= 3
