"""Configurations of trainings, and the texts that they name: what cannot be right is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from memcore import ConfigError, MemoryConfig, TrainingError
from memcore.training.configuration import StageConfig, TrainingConfig
from memcore.training.documents import check_apart, read_documents, tokenize

GOOD: dict[str, Any] = {"model": "a", "documents": ["b.txt"], "output": "c"}


def load(folder: Path, values: dict[str, Any]) -> TrainingConfig:
    path = folder / "training.json"
    path.write_text(json.dumps(values))
    return TrainingConfig.from_file(path)


def test_toml_and_yaml_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        'model = "m"\ndocuments = ["x/*.txt"]\noutput = "out"\n[memory]\nwindow = 256\nmemory_layer = 3\n'
        '[[stages]]\nname = "warm-up"\nplan = {first_layer = 0, lora_rank = 8}\n[[stages]]\nsteps = 7\n'
    )
    (tmp_path / "a.yaml").write_text(
        "model: m\ndocuments: [x/*.txt]\noutput: out\nmemory: {window: 256, memory_layer: 3}\n"
        "stages: [{name: warm-up, plan: {first_layer: 0, lora_rank: 8}}, {steps: 7}]\n"
    )
    found = [TrainingConfig.from_file(tmp_path / name) for name in ("a.toml", "a.yaml")]
    assert found[0] == found[1]
    assert found[0].memory == MemoryConfig(window=256, memory_layer=3)
    assert found[0].stage_names == ["warm-up", "stage-2"]
    assert found[0].output == Path("out")


def test_the_defaults_are_the_papers(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    (stage,) = config.stages
    assert (stage.learning_rate, stage.weight_decay, config.data.segment) == (5e-5, 1e-4, 1024)
    assert stage.warmup(100_000) == 1000
    assert stage.warmup(200) == 20


def test_steps_come_from_the_texts_where_they_are_not_given() -> None:
    assert StageConfig().total_steps(10) == 10
    assert StageConfig(epochs=3, accumulation=4).total_steps(10) == 9
    assert StageConfig(epochs=3, steps=5).total_steps(10) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle": "a"}, "unknown field 'modle', did you mean 'model'"),
        ({"memory": {"windw": 3}}, "memory: unknown field 'windw', did you mean 'window'"),
        ({"memory": {"window": 3}}, "window"),
        ({"data": {"rows": 0}}, "data: 'rows' must be >= 1"),
        ({"data": {"rows": "2"}}, "data.rows must be an integer"),
        ({"stages": [{"lr": 1}]}, r"stages\[0\]: unknown field 'lr'"),
        ({"stages": [{"plan": {"lora_rang": 1}}]}, r"plan: unknown field 'lora_rang', did you mean 'lora_rank'"),
        ({"stages": [{"plan": {"lora_alpha": 1}}]}, "lora_alpha is of LoRA, which needs lora_rank"),
        ({"stages": [{"plan": {"lora_dropout": 1.0, "lora_rank": 2}}]}, "must be < 1"),
        ({"stages": [{"schedule": "cosin"}]}, "must be 'linear', 'cosine' or 'constant'"),
        ({"stages": [{"learning_rate": 0}]}, "must be > 0"),
        ({"stages": []}, "stages"),
        ({"stages": [{"name": "../up"}]}, "the name of a stage has letters"),
        ({"stages": [{"name": "a"}, {"name": "a"}]}, "two stages have the same name"),
        ({"documents": []}, "documents"),
        ({"documents": "b.txt"}, "documents must be a list"),
        ({"device": "gpu"}, "must be 'auto' or 'cpu'"),
    ],
)  # fmt: skip
def test_bad_configurations_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, {**GOOD, **change})


@pytest.mark.parametrize("field", ["model", "documents", "output"])
def test_what_is_needed_is_said(tmp_path: Path, field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} is required"):
        load(tmp_path, {name: value for name, value in GOOD.items() if name != field})


def test_patterns_find_each_text_once_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "deep/c.txt", "d.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text {name}")
    found = read_documents([str(tmp_path / "b.txt"), f"{tmp_path}/**/*.txt"])
    assert [path.name for path in found] == ["b.txt", "a.txt", "c.txt"]
    assert found[(tmp_path / "a.txt").resolve()] == "text a.txt"


def test_a_mark_at_the_beginning_is_no_part_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone".encode())
    assert list(read_documents([str(tmp_path / "a.txt")]).values()) == ["one"]


def test_texts_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("größer".encode("latin-1"))
    (tmp_path / "empty.txt").write_text(" \n")
    for pattern, message in (
        ("no*.txt", "no file is named"),
        ("latin.txt", "as UTF-8 text"),
        ("empty.txt", "has no text in it"),
    ):
        with pytest.raises(TrainingError, match=message):
            read_documents([str(tmp_path / pattern)])


@pytest.mark.parametrize("held_out", ["same.txt", "copy.txt", "part.txt", "whole.txt"])
def test_what_is_trained_on_is_not_evaluated_on(tmp_path: Path, held_out: str) -> None:
    (tmp_path / "same.txt").write_text("one two three")
    (tmp_path / "copy.txt").write_text("one two three\n")
    (tmp_path / "part.txt").write_text("two three")
    (tmp_path / "whole.txt").write_text("zero one two three four")
    (tmp_path / "apart.txt").write_text("three two one")
    training = read_documents([str(tmp_path / "same.txt")])
    with pytest.raises(TrainingError, match=f"{held_out}.* is trained on"):
        check_apart(training, read_documents([str(tmp_path / held_out)]))
    check_apart(training, read_documents([str(tmp_path / "apart.txt")]))


def test_texts_are_cut_where_there_are_tokens_enough() -> None:
    from tiny_tokenizer import tiny_tokenizer

    texts = {Path(str(number)): "w1 w2 w3 w4" for number in range(3)}
    whole = tokenize(tiny_tokenizer(), texts, None)
    assert [len(each) for each in whole] == [4, 4, 4]
    assert [each.tolist() for each in tokenize(tiny_tokenizer(), texts, 6)] == [
        whole[0].tolist(),
        whole[1][:2].tolist(),
    ]


def test_a_configuration_is_immutable(tmp_path: Path) -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        load(tmp_path, GOOD).seed = 3  # type: ignore[misc]
