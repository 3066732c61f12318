"""The page on training: its configuration trains, and its code runs as it stands, with a tiny model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from cli_runner import run
from tiny_models import tiny_model
from tiny_tokenizer import tiny_tokenizer

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
NAME = '"google/gemma-3-270m"'


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_page_trains_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    tiny_model("llama", num_hidden_layers=18, hidden_size=16, intermediate_size=16).save_pretrained("tiny")
    tiny_tokenizer().save_pretrained("tiny")
    texts = {"books/a": 1100, "held-out/persuasion": 1030}
    for number, (name, length) in enumerate(texts.items()):
        path = Path(f"{name}.txt")
        path.parent.mkdir()
        path.write_text(" ".join(f"w{(n * n + number * n) % 23}" for n in range(length)))
    (toml,) = blocks("toml")
    assert toml.count(NAME) == toml.count("steps = 200") == 1
    Path("training.toml").write_text(toml.replace(NAME, '"tiny"').replace("steps = 200", "steps = 1"))
    result = run("train", "training.toml")
    assert result.exit_code == 0, result.output
    for name in re.findall(r"`([\w./-]+)`", "".join(re.findall(r"^\| (`.*?) \|", PAGE, flags=re.MULTILINE))):
        assert (Path("trained") / name).exists(), name
    names: dict[str, Any] = {"texts": [Path("books/a.txt").read_text()]}
    for block in blocks("python"):
        exec(block.replace(NAME, '"tiny"'), names)
    assert "parameters train" in capsys.readouterr().out
    assert [(path / "trained.json").exists() for path in (Path("by-hand"), Path("by-trainer"))] == [True, True]
