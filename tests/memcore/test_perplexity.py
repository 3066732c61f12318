"""Perplexity: ways of reading side by side, on the command line too, and results that go on later."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from cli_runner import run
from tiny_models import random_tokens, tiny_model

import memcore
from memcore import EvaluationError, MemoryConfig
from memcore.evaluation import perplexity as module
from memcore.evaluation.losses import cached_losses
from memcore.evaluation.perplexity import PERPLEXITY_WAYS, evaluate, perplexity, relative, summary
from memcore.evaluation.record import Record

SMALL = MemoryConfig(window=32, chunk_size=8, sinks=4, top_k=2)
TEXT = random_tokens(1, 160, seed=1)


@pytest.mark.parametrize("way", [*PERPLEXITY_WAYS, "memory:hnswlib"])
def test_every_way_gives_the_mean_loss_of_the_same_tokens(way: str) -> None:
    if "hnswlib" in way:
        pytest.importorskip("hnswlib", reason="hnswlib is not installed")
    model = tiny_model("llama")
    result = perplexity(model, TEXT, way, config=SMALL, contexts=[120, 60], scored=20)
    assert list(result.losses) == [60, 120]
    assert (result.tokens, result.read) == (20, 120)
    assert not hasattr(model, "memory")
    full = cached_losses(model, TEXT, [(40, 60), (100, 120)], piece=64)
    expected = {60: float(full[40:60].mean()), 120: float(full[100:120].mean())}
    assert (result.losses == pytest.approx(expected, abs=1e-5)) is (way == "full")


def test_blocks_are_what_the_mean_is_of() -> None:
    result = perplexity(tiny_model("llama"), TEXT, "memory", config=SMALL, contexts=[150], scored=100)
    assert len(result.blocks[150]) == 2
    mean = (64 * result.blocks[150][0] + 36 * result.blocks[150][1]) / 100
    assert mean == pytest.approx(result.losses[150], abs=1e-4)


@pytest.mark.parametrize("way", ["window", "full", "memory"])
def test_every_third_token_is_scored_as_among_all(way: str) -> None:
    model = tiny_model("llama")
    options: dict[str, Any] = {"config": SMALL, "contexts": [60, 150], "scored": 40}
    few = perplexity(model, TEXT, way, every=3, **options)
    assert few.tokens == 14
    with module._reading(model, way, SMALL) as losses_of:
        every_one = losses_of(TEXT, [(20, 60), (110, 150)], every=1, progress=None)
    assert few.losses[150] == pytest.approx(float(every_one[110:150:3].mean()), abs=1e-5)
    assert few.losses[60] == pytest.approx(float(every_one[20:60:3].mean()), abs=1e-5)


def test_ways_are_compared_block_by_block() -> None:
    results = {
        "one / memory": {"blocks": {"100": [2.0, 3.0]}},
        "one / full": {"blocks": {100: [1.9, 3.1]}},
        "two / memory": {"blocks": {"100": [4.0]}},
        "two / full": {"blocks": {"100": [3.7]}},
        "three / memory": {"blocks": {"100": [9.0]}},
    }
    ratio, error = relative(results, "memory", "full")[100]
    assert ratio == pytest.approx(math.exp(0.1))
    assert error == pytest.approx(math.exp(0.1) * 0.2 / math.sqrt(3))


def test_with_everything_recalled_memory_is_full_attention() -> None:
    model = tiny_model("llama")
    everything = attrs.evolve(SMALL, top_k=1000, positions="original")
    losses = [
        perplexity(model, TEXT, way, config=everything, contexts=[150], scored=50).losses for way in ("full", "memory")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_results_that_are_there_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = tiny_model("llama"), []
    plain = module.perplexity

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[2])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(*args, **kwargs)

    monkeypatch.setattr(module, "perplexity", counted)
    texts = {"one": TEXT, "two": random_tokens(1, 160, seed=2)}

    def go_on() -> dict[str, Any]:
        record = Record(tmp_path / "ppl.json", "ppl", {"scored": 20})
        evaluate(model, texts, ["window", "memory"], config=SMALL, contexts=[60, 120], scored=20, record=record)
        return record.results

    with pytest.raises(KeyboardInterrupt):
        go_on()
    results = go_on()
    assert calls == ["window", "memory", "window", "window", "memory"]
    assert list(results) == ["one / window", "one / memory", "two / window", "two / memory"]
    read = json.loads((tmp_path / "ppl.json").read_text())
    assert read["results"].keys() == results.keys()
    assert read["machine"]["torch"] == torch.__version__
    means = [result["losses"][120] for result in list(results.values())[2:]]
    first = read["results"]["one / window"]["losses"]["120"]
    assert summary(read["results"], ["window"])["window"][120] == pytest.approx(math.exp((first + means[0]) / 2))


def test_another_text_of_the_same_name_is_refused_and_never_taken_for_it(tmp_path: Path) -> None:
    model, record = tiny_model("llama"), Record(tmp_path / "ppl.json", "ppl", {})

    def score(ids: torch.Tensor) -> None:
        evaluate(model, {"a.txt": ids}, ["window"], config=SMALL, contexts=[60], scored=20, record=record)

    score(TEXT)
    before = dict(record.results)
    score(torch.cat([TEXT[:, :60], TEXT[:, :9]], dim=1))  # the same as far as it is read
    with pytest.raises(EvaluationError, match=r"'a\.txt' that are there are of another text of this name"):
        score(random_tokens(1, 160, seed=7))
    assert record.results == before
    del record.results["a.txt / window"]["text"]  # as in records of old
    score(random_tokens(1, 160, seed=7))


def test_the_mean_is_of_the_texts_that_were_asked_for() -> None:
    results = {f"{name} / full": {"losses": {"60": loss}} for name, loss in (("one", 1.0), ("two", 2.0))}
    assert summary(results, ["full"])["full"][60] == pytest.approx(math.exp(1.5))
    assert summary(results, ["full"], ["two"])["full"][60] == pytest.approx(math.exp(2.0))


def test_a_folder_that_cannot_be_is_refused_before_there_is_a_result(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(memcore.WriteError, match="out' is a file; name a folder"):
        Record(tmp_path / "out" / "ppl.json", "ppl", {})


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ('{"evaluation": "qa", "settings": {"a": 1}, "results": {}}', "'qa', not of 'ppl'"),
        ('{"evaluation": "ppl", "settings": {"a": 2}, "results": {}}', "made with a = 2, not 1"),
        ("{", "no record of an evaluation"),
        ("[]", "no record of an evaluation"),
    ],
)
def test_other_results_are_never_overwritten(tmp_path: Path, record: str, says: str) -> None:
    path = tmp_path / "ppl.json"
    path.write_text(record)
    with pytest.raises(EvaluationError, match=says):
        Record(path, "ppl", {"a": 1})
    assert path.read_text() == record


@pytest.mark.parametrize(
    ("way", "contexts", "says"),
    [
        ("memroy", [60], "no way of reading 'memroy'; there are chunks, window"),
        ("full:lmdb", [60], "no way of reading 'full:lmdb'"),
        ("full", [10], "longer than the 20 tokens"),
        ("full", [], "longer than the 20 tokens"),
        ("full", [200], "the text has 160 tokens"),
    ],
)
def test_what_cannot_be_scored_is_said(way: str, contexts: list[int], says: str) -> None:
    with pytest.raises(EvaluationError, match=says):
        perplexity(tiny_model("llama"), TEXT, way, config=SMALL, contexts=contexts, scored=20)


def test_the_command_writes_a_table_json_and_a_picture(tiny_folder: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{n * n % 90}" for n in range(300)))
    arguments = ["eval", "ppl", tiny_folder, "--file", str(text), "--context", "100", "--context", "200",
                 "--scored", "30", "--window", "128", "--output", str(tmp_path / "out")]  # fmt: skip
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    for way in ("window", "full", "streaming", "random", "memory"):
        assert way in result.stdout
    assert (tmp_path / "out" / "ppl.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "out" / "ppl.json").read_text())
    assert record["settings"]["contexts"] == [100, 200]
    assert len(record["results"]) == 5
    assert run(*arguments).stdout == result.stdout
    other = run(*arguments, "--set", "top_k=3")
    assert other.exit_code == 1
    assert "give another folder" in other.stderr


def test_the_command_shows_the_texts_that_it_was_given_alone(tiny_folder: str, tmp_path: Path) -> None:
    for name, step in (("one.txt", 1), ("two.txt", 2)):
        (tmp_path / name).write_text(" ".join(f"w{n * n * step % 90}" for n in range(150)))

    def shown(name: str, output: str) -> Any:
        result = run("eval", "ppl", tiny_folder, "--file", str(tmp_path / name), "--context", "100", "--scored", "30",
                     "--window", "128", "--way", "window", "--output", str(tmp_path / output), "--json")  # fmt: skip
        return json.loads(result.stdout)["results"]

    one = shown("one.txt", "both")
    assert shown("two.txt", "both") == shown("two.txt", "two") != one
    assert shown("one.txt", "both") == one


@pytest.mark.parametrize(
    ("more", "says"),
    [(["--context", "5000"], "fewer than the longest context"), (["--way", "all"], "no way of reading 'all'")],
)
def test_the_command_says_what_is_wrong(tiny_folder: str, tmp_path: Path, more: list[str], says: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text("w1 w2 w3 " * 50)
    result = run("eval", "ppl", tiny_folder, "--file", str(text), "--context", "100", "--scored", "30", "--output",
                 str(tmp_path / "out"), *more)  # fmt: skip
    assert result.exit_code == 1
    assert says in result.stderr
    assert isinstance(memcore.EvaluationError("x"), memcore.MemcoreError)
