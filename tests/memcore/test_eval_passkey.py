"""Pass-key prompts: what is hidden where, the same for every way of reading; and the command that asks for them."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from character_tokenizer import character_tokenizer
from cli_runner import run
from tiny_models import tiny_model

from memcore import EvaluationError, MemoryConfig
from memcore.evaluation import passkey as module
from memcore.evaluation.needles import NEEDLES, make_trial
from memcore.evaluation.passkey import Grid, evaluate, summary
from memcore.evaluation.record import Record
from memcore.evaluation.vaults import VAULTS, with_keys
from memcore.evaluation.ways import WAYS
from memcore.reader import Reader

SMALL = MemoryConfig(window=64, chunk_size=8, sinks=4, top_k=2, question_tokens=4)
TOKENIZER = character_tokenizer()
TEXT: list[int] = TOKENIZER("the rain falls on the plain, " * 200, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", NEEDLES)
@pytest.mark.parametrize("depth", [0.0, 0.4, 1.0])
def test_a_prompt_has_its_length_and_the_key_at_its_depth(kind: str, depth: float) -> None:
    trial = make_trial(TOKENIZER, TEXT, tokens=1500, depth=depth, seed=3, kind=kind, others=3)
    assert trial.ids.shape == (1, 1500)
    text = TOKENIZER.decode(trial.ids[0])
    first, last = trial.needle
    sentence = TOKENIZER.decode(trial.ids[0, first : last + 1])
    assert sentence.count(trial.key) == text.count(trial.key) == 2
    assert sentence.startswith("\n\nThe access code of the green vault")
    assert sentence.endswith(f"{trial.key}.\n\n")
    # Whatever stands around it, the same share of the text stands before it.
    before = text[:first].count("rain")
    total = text.count("rain")
    assert before == pytest.approx(depth * total, abs=2)
    assert text.rstrip().endswith("vault is now" if kind == "update" else "The access code of the green vault is")


@pytest.mark.parametrize(("kind", "count"), [("single", 0), ("several", 3), ("distractors", 3), ("update", 1)])
def test_beside_the_key_stands_what_the_kind_says(kind: str, count: int) -> None:
    for seed in range(5):
        trial = make_trial(TOKENIZER, TEXT, tokens=1500, depth=0.5, seed=seed, kind=kind, others=3)
        text = TOKENIZER.decode(trial.ids[0])
        assert len({trial.key, *trial.others}) == 1 + count
        assert all(text.count(f" {key}") == 2 for key in trial.others)
        body = text[: text.index("Question:")]
        assert body.count("access code of the green vault") == (2 if kind == "update" else 1)
        assert body.count("access code of the ") == {"several": 4, "update": 2}.get(kind, 1)
        assert body.count(" of the green vault is ") == (4 if kind == "distractors" else 1)
        if kind == "update":
            assert text.index(trial.others[0]) < text.index(trial.key)


def test_a_prompt_depends_on_its_seed_and_depth_alone() -> None:
    def prompt(**changes: Any) -> list[int]:
        fixed: dict[str, Any] = {"tokens": 900, "depth": 0.5, "seed": 1, "kind": "several", **changes}
        ids: list[int] = make_trial(TOKENIZER, TEXT, **fixed).ids[0].tolist()
        return ids

    assert prompt() == prompt()
    assert prompt() != prompt(seed=2)
    assert prompt() != prompt(depth=0.6)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tokens": 100_000}, "too few for a prompt of 100,000"),
        ({"tokens": 100}, "hold no text .* give at least"),
        ({"kind": "double"}, "one of single, several, distractors, update"),
        ({"depth": 1.5}, "a depth from 0 to 1"),
        ({"kind": "several", "others": 12}, "1 to 11 others"),
    ],
)
def test_what_cannot_be_hidden_is_said(changes: dict[str, Any], says: str) -> None:
    fixed: dict[str, Any] = {"tokens": 900, "depth": 0.5, "seed": 1, **changes}
    with pytest.raises(EvaluationError, match=says):
        make_trial(TOKENIZER, TEXT, **fixed)


def test_a_text_can_have_a_key_at_each_depth_and_is_as_long_as_before() -> None:
    depths = [0.0, 0.3, 0.6, 1.0]
    ids, hidden = with_keys(TOKENIZER, TEXT[:3000], depths, seed=2)
    assert ids.shape == (1, 3000)
    assert [each.depth for each in hidden] == depths
    assert len({each.key for each in hidden}) == len(depths)
    text = TOKENIZER.decode(ids[0])
    for each, (what, colour) in zip(hidden, VAULTS, strict=False):
        assert text.count(f" {each.key}") == 2
        assert text.count(f"The {what} of the {colour} vault is {each.key}") == 1
        assert TOKENIZER.decode(each.question[0]).endswith(f"The {what} of the {colour} vault is")
        assert text.index(each.key) / len(text) == pytest.approx(each.depth, abs=0.05)


@pytest.mark.parametrize(
    ("tokens", "depths", "says"),
    [
        (900, [0.5, 0.55], "900 tokens have no room .* 0.5, 0.55"),
        (3000, [n / 20 for n in range(11)], "at most 10 keys"),
    ],
)
def test_keys_that_do_not_fit_a_text_are_refused(tokens: int, depths: list[float], says: str) -> None:
    with pytest.raises(EvaluationError, match=says):
        with_keys(TOKENIZER, TEXT[:tokens], depths, seed=0)


def test_keys_at_each_depth_take_one_reading_and_it_is_the_same_for_every_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, read, asked = tiny_model("llama"), [], []
    reading, asking = Reader.read, Reader.ask

    def watched_read(self: Reader, ids: Any, progress: Any = None) -> None:
        read.append(ids[0].tolist())
        reading(self, ids, progress)

    def watched_ask(self: Reader, question: Any, **given: Any) -> Any:
        asked.append(question[0].tolist())
        if len(asked) == 3:
            raise KeyboardInterrupt
        return asking(self, question, **given)

    monkeypatch.setattr(Reader, "read", watched_read)
    monkeypatch.setattr(Reader, "ask", watched_ask)
    grid = Grid(lengths=(1200,), depths=(0.2, 0.8), seeds=2, kinds=("each",))
    every = {grid.key("each", 1200, depth, seed, way) for depth in (0.2, 0.8) for seed in (0, 1) for way in WAYS}

    def go_on() -> Record:
        record = Record(tmp_path / "passkey.json", "passkey", {})
        evaluate(model, TOKENIZER, TEXT, [*WAYS], config=SMALL, grid=grid, record=record)
        return record

    with pytest.raises(KeyboardInterrupt):
        go_on()
    record = go_on()
    assert set(record.results) == every
    # Two texts for each way, one of which was begun again for the question that was interrupted.
    assert len(asked) == len(every) + 1
    (first, *_), *texts = (read[begin : begin + 2] for begin in (0, 3, 5, 7, 9))
    assert len(read) == 11
    assert all(text == texts[0] for text in texts)
    assert first == [texts[0][0][0], *texts[0][0][-63:]]
    for depth in grid.depths:
        keys = {record.results[grid.key("each", 1200, depth, 0, way)]["key"] for way in WAYS}
        assert len(keys) == 1


def test_every_way_reads_the_same_prompts_from_an_empty_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, read, held = tiny_model("llama"), [], []
    plain = module.answer

    def watched(model: Any, tokenizer: Any, ids: Any) -> str:
        memory = getattr(model, "memory", None)
        held.append(0 if memory is None else sum(map(memory.bank.count, memory.bank.namespaces())))
        read.append(ids[0].tolist())
        return plain(model, tokenizer, ids)

    monkeypatch.setattr(module, "answer", watched)
    grid = Grid(lengths=(300,), depths=(0.2, 0.8), seeds=1)
    record = Record(tmp_path / "passkey.json", "passkey", {})
    evaluate(model, TOKENIZER, TEXT, [*WAYS], config=SMALL, grid=grid, record=record)
    assert not hasattr(model, "memory")
    assert next(iter(WAYS)) == "window"
    window, *others = (read[begin : begin + 2] for begin in range(0, len(read), 2))
    assert len(others) == 4
    assert all(other == others[0] for other in others)
    assert window == [[ids[0], *ids[-63:]] for ids in others[0]]
    assert held == [0] * 10


def test_results_that_are_there_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def counted(model: Any, tokenizer: Any, ids: Any) -> str:
        asked.append(ids)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return "no key"

    monkeypatch.setattr(module, "answer", counted)
    model, told = tiny_model("llama"), []

    def go_on(**changes: Any) -> Record:
        grid = Grid(**{"lengths": (300,), "depths": (0.2, 0.8), "seeds": 2, **changes})
        record = Record(tmp_path / "passkey.json", "passkey", {})
        evaluate(
            model, TOKENIZER, TEXT, ["full"], config=SMALL, grid=grid, record=record,
            progress=lambda what, total: lambda done, of: told.append((what, total, done, of)),
        )  # fmt: skip
        return record

    with pytest.raises(KeyboardInterrupt):
        go_on()
    go_on()
    assert len(asked) == 5
    assert told[-1] == ("single, 300 tokens, full", 600, 600, 600)
    assert len(go_on(seeds=3).results) == 6  # more seeds go into the same record
    assert len(asked) == 7


def test_a_key_among_others_is_no_key_among_those_at_other_depths() -> None:
    def key(*depths: float) -> str:
        return Grid(lengths=(300,), depths=depths, seeds=1).key("each", 300, 0.5, 0, "full")

    assert key(0.1, 0.5) != key(0.5, 0.9)  # another vault's, beside keys in other places
    assert key(0.1, 0.5) == key(0.5, 0.1) == "each 0.1, 0.5 / 300 / 0.5 / 0 / full"


def test_the_share_found_is_by_depth_and_length() -> None:
    grid = Grid(lengths=(100, 200), depths=(0.1, 0.9), seeds=2)
    found = {(100, 0.1): [True, True], (200, 0.1): [True, False], (100, 0.9): [False, False]}
    results = {
        grid.key("single", length, depth, seed, "full"): {"found": each}
        for (length, depth), every in found.items()
        for seed, each in enumerate(every)
    }
    assert summary(results, ["full"], grid, "single") == {"full": {0.1: {100: 1.0, 200: 0.5}, 0.9: {100: 0.0}}}


def arguments(folder: str, tmp_path: Path, *more: str) -> list[str]:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{n * n % 90}" for n in range(400)))
    return ["eval", "passkey", folder, "--file", str(text), "--tokens", "200", "--tokens", "150", "--depth", "0.5",
            "--seeds", "1", "--window", "128", "--output", str(tmp_path / "out"), *more]  # fmt: skip


def test_the_command_writes_tables_json_and_heat_maps(tiny_folder: str, tmp_path: Path) -> None:
    command = arguments(tiny_folder, tmp_path, "--needles", "single", "--needles", "update", "--needles", "each")
    result = run(*command, "--way", "full", "--way", "memory")
    assert result.exit_code == 0, result.output
    for expected in ("full", "memory", "single", "update", "each: keys found, by depth", "0.5", "0/1"):
        assert expected in result.stdout
    for kind in ("single", "update", "each"):
        assert (tmp_path / "out" / f"passkey-{kind}.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((tmp_path / "out" / "passkey.json").read_text())["results"]) == 3 * 2 * 2
    assert result.stderr == ""  # no progress where there is no terminal
    assert run(*command, "--way", "full", "--way", "memory").stdout == result.stdout


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--tokens", "5000"], "too few for a prompt of 5,000"),
        (["--needles", "many"], "needles are one of single, several, distractors, update, each"),
        (["--way", "chunks"], "no way of reading 'chunks'"),
        (["--way", "full", "--way", "full"], "given once"),
        (["--way", "memory:nowhere"], "nowhere"),
        (["--way", "memory", "--set", "backend_options.paht=x"], "backend_options of 'exact'"),
    ],
)
def test_the_command_says_what_is_wrong(tiny_folder: str, tmp_path: Path, more: list[str], says: str) -> None:
    result = run(*arguments(tiny_folder, tmp_path, *more))
    assert result.exit_code == 1
    assert says in result.stderr
    assert not (tmp_path / "out" / "passkey.json").exists()


def test_the_benchmark_asks_by_the_command(tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "passkey.py"
    given = ["--model", tiny_folder, *arguments("", tmp_path)[3:], "--way", "full"]
    monkeypatch.setattr(sys, "argv", [str(script), *given])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    assert not stopped.value.code
    assert len(json.loads((tmp_path / "out" / "passkey.json").read_text())["results"]) == 2


@pytest.mark.model
def test_a_real_model_finds_the_key_with_memory_and_not_without(gemma: Any, tmp_path: Path) -> None:
    from memcore.demo.text import language_reference
    from memcore.prompt import encode

    model, tokenizer = gemma
    text = encode(tokenizer, language_reference()[:20_000], special=False)[0].tolist()
    grid = Grid(lengths=(640,), depths=(0.2,), seeds=1)
    record = Record(tmp_path / "passkey.json", "passkey", {})
    config = MemoryConfig(window=256, chunk_size=32)
    evaluate(model, tokenizer, text, ["window", "memory"], config=config, grid=grid, record=record)
    assert [result["found"] for result in record.results.values()] == [False, True]
