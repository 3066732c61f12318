"""The page on evaluation: its commands run, at their smallest, and so does its code."""

from __future__ import annotations

import json
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runner import run
from tiny_models import tiny_model
from tiny_tokenizer import tiny_tokenizer

import memcore

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")

SMALLER = {"8192": "200", "32768": "400", "8000": "180", "32000": "260", "128": "12", "1024": "128", "MODEL": ""}
"""Lengths on the page, and what they become here."""

LEAST = {
    "ppl": ["--scored", "30", "--way", "full", "--way", "memory"],
    "passkey": ["--seeds", "1", "--file", "novel.txt", "--depth", "0.5", "--way", "memory"],
    "icl": ["--seeds", "2", "--items", "2", "--demonstrations", "8", "--way", "memory"],
    "qa": ["--max-new-tokens", "2", "--way", "memory"],
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the page names."""
    monkeypatch.chdir(tmp_path)
    Path("novel.txt").write_text(" ".join(f"w{n * n % 90}" for n in range(800)))
    Path("questions.jsonl").write_text(blocks("json")[0])
    Path("films.csv").write_text("text,label\n" + "".join(f"w{n} w{n + 1},{n % 2}\n" for n in range(60)))
    for name, header in (("SST-2/train.tsv", "sentence\tlabel\n"), ("SST-2/dev.tsv", "sentence\tlabel\n")):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        rows = "".join(f"w{n} {name}\t{n % 2}\n" for n in range(40))
        (tmp_path / "data" / name).write_text(header + rows)
    (tmp_path / "data" / "subj").mkdir()
    (tmp_path / "data" / "subj" / "train.csv").write_text("".join(f"{n % 2},w{n} w3\n" for n in range(40)))
    return tmp_path


COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_on_the_page_run(command: str, tiny_folder: str, files: Path) -> None:
    program, *arguments = shlex.split(command)
    assert program == "memcore"
    small = [tiny_folder if each == "MODEL" else SMALLER.get(each, each) for each in arguments]
    result = run(*small, "--window", "128", *LEAST[arguments[1]])
    assert result.exit_code == 0, result.output
    assert list((files / "results").glob("*.json"))
    assert list((files / "results").glob("*.png"))


def test_every_command_is_on_the_page() -> None:
    listed = re.findall(r"^│ +(\w+)|^  (\w+)  ", run("eval", "--help").stdout, flags=re.MULTILINE)
    assert {shlex.split(command)[2] for command in COMMANDS} == {first or second for first, second in listed}


def test_the_page_names_every_way() -> None:
    from memcore.evaluation.perplexity import PERPLEXITY_WAYS

    assert {*PERPLEXITY_WAYS, "memory:BACKEND"} == set(re.findall(r"^\| `([\w:]+)` \|", PAGE, flags=re.MULTILINE))


@pytest.mark.usefixtures("files")
def test_the_code_on_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code = blocks("python")[0].replace("1024", "128")
    names: dict[str, Any] = {"model": tiny_model("llama"), "tokenizer": tiny_tokenizer()}
    exec(code, names)
    assert set(names["summary"](names["record"].results, ["window", "memory"], names["questions"])) == {
        "window",
        "memory",
    }
    assert "'memory'" in capsys.readouterr().out


def write_task(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Write the task on the page, or the same with replies that are generated, and return its documents."""
    (folder / "tasks").mkdir()
    yaml = blocks("yaml")[0]
    if kind == "generated":
        yaml = yaml.replace("multiple_choice", "generate_until").replace("doc_to_choice: options\n", "")
        yaml = yaml.replace("metric: acc", "metric: exact_match")
        yaml += 'generation_kwargs:\n  until: ["w1"]\n  max_gen_toks: 5\n  do_sample: false\n'
    (folder / "tasks" / "long_choice.yaml").write_text(yaml)
    texts = [" ".join(f"w{(seed + n) * n % 90}" for n in range(200 + seed)) for seed in range(3)]
    options = ["w1 w2", "w3 w5 w6", "w8"]
    documents = [{"text": text, "question": "w7", "options": options, "answer": n} for n, text in enumerate(texts)]
    (folder / "tasks" / "long_choice.jsonl").write_text("".join(json.dumps(each) + "\n" for each in documents))
    return documents


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness, with its caches in a folder that goes away and without a network."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install lm-eval")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


def harness_replies(model: Any, tokenizer: Any) -> list[Any]:
    lm_eval, models, tasks = map(import_module, ("lm_eval", "lm_eval.models.huggingface", "lm_eval.tasks"))
    harness = models.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=100_000)
    manager = tasks.TaskManager(include_path="tasks", include_defaults=False)
    done = lm_eval.simple_evaluate(model=harness, tasks=["long_choice"], task_manager=manager, bootstrap_iters=0)
    return [sample["filtered_resps"] for sample in done["samples"]["long_choice"]]


@pytest.mark.usefixtures("offline")
def test_the_harness_runs_on_a_wrapped_model_as_the_page_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_task(tmp_path, "choice")
    names: dict[str, Any] = {"model": tiny_model("llama"), "tokenizer": tiny_tokenizer()}
    exec(blocks("python")[1].replace("1024", "128"), names)
    assert names["model"].memory.config.window == 128
    assert "long_choice" in capsys.readouterr().out


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("kind", ["choice", "generated"])
def test_the_harness_gets_what_the_model_with_memory_says(tmp_path: Path, kind: str) -> None:
    documents, model, tokenizer = write_task(tmp_path, kind), tiny_model("llama"), tiny_tokenizer()
    tokenizer.eos_token = "<s>"  # the harness stops there
    plain = harness_replies(model, tokenizer)
    memcore.wrap(model, window=64, chunk_size=8, top_k=1000, positions="original")
    everything = harness_replies(model, tokenizer)
    memcore.wrap(memcore.unwrap(model), window=64, chunk_size=8, top_k=1)
    little = harness_replies(model, tokenizer)
    assert len(plain) == len(documents)
    if kind == "generated":
        assert everything == plain
        assert little != plain
    else:
        likely = [torch.tensor([[score for score, _ in row] for row in rows]) for rows in (plain, everything, little)]
        torch.testing.assert_close(likely[0], likely[1], atol=1e-3, rtol=0)
        assert float((likely[0] - likely[2]).abs().max()) > 0.05
