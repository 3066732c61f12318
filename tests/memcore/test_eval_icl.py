"""In-context learning: what is drawn, what each way is shown, and the command."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from character_tokenizer import character_tokenizer
from cli_runner import run
from tiny_models import tiny_model

from memcore import EvaluationError, MemoryConfig
from memcore.evaluation import icl as module
from memcore.evaluation.icl import Protocol, evaluate, summary
from memcore.evaluation.labelled_texts import (
    SETS,
    Example,
    Task,
    draw_demonstrations,
    draw_tests,
    known_task,
    make_task,
    read_examples,
)
from memcore.evaluation.ranking import log_probabilities
from memcore.evaluation.record import Record
from memcore.evaluation.ways import WAYS
from memcore.prompt import encode
from memcore.reader import Reader

SMALL = MemoryConfig(window=64, chunk_size=8, sinks=4, top_k=2, question_tokens=4)
WORDS = {"0": "bad", "1": "good", "2": "so so"}


def examples(count: int, *, first: int = 0) -> list[Example]:
    return [Example(f"text {number}", str(number % 3)) for number in range(first, first + count)]


def task(**changes: Any) -> Task:
    given: dict[str, Any] = {"words": WORDS, "prompt": "In: {text}\nType:", **changes}
    return make_task("small", changes.pop("pool", examples(60)), changes.pop("tests", ()), **{
        name: given[name] for name in ("words", "prompt")
    })  # fmt: skip


@pytest.mark.parametrize("tests", [(), examples(20, first=50)], ids=["one file", "a file of tests"])
def test_demonstrations_are_in_balance_and_never_test_items(tests: list[Example]) -> None:
    small = task(tests=tests)
    items = draw_tests(small, 12)
    assert len({item.text for item in items}) == 12
    for seed in range(20):
        before, shots = draw_demonstrations(small, items, (16, 4), seed)
        texts = [example.text for example in (*before, *shots)]
        assert len(set(texts)) == 20
        assert not set(texts) & {example.text for example in (*items, *tests)}
        assert sorted(Counter(example.label for example in before).values()) == [5, 5, 6]
        assert sorted(Counter(example.label for example in shots).values()) == [1, 1, 2]


def test_a_draw_depends_on_its_seed_and_test_items_do_not() -> None:
    small = task()
    items = draw_tests(small, 12)
    assert items == draw_tests(small, 12)
    draws = [draw_demonstrations(small, items, (9, 3), seed) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    labels = [example.label for example in draws[0][0]]
    assert labels != sorted(labels)  # in an order by chance


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'label,text\n1,"good, ""so"" good"\n0,bad\n1,bad\n0,\n'),
        ("a.tsv", 'text\tother\tlabel\ngood, "so" good\tx\t1\n bad\ty\t0 \nbad\tz\t1\n'),
        ("a.csv", '\ufefftext,label\n"good, ""so"" good",1\nbad,0\n'),
    ],
)
def test_tables_are_read_by_their_columns_and_each_text_once(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_examples(tmp_path / name) == (Example('good, "so" good', "1"), Example("bad", "0"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "sentence,label\nx,1\n", "no column text; it has sentence, label"),
        ("a.csv", "", "no column label, text"),
        ("a.txt", "text,label\n", r"a .csv or .tsv file"),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(EvaluationError, match=says):
        read_examples(tmp_path / name)
    with pytest.raises(EvaluationError, match="cannot read"):
        read_examples(tmp_path / "nowhere.csv")


def test_public_sets_are_recognised_by_their_files(tmp_path: Path) -> None:
    for folder in ("SST-2", "subj"):
        (tmp_path / folder).mkdir()
    (tmp_path / "SST-2" / "train.tsv").write_text('sentence\tlabel\na "fine" film\t1\nan awful one\t0\n')
    (tmp_path / "SST-2" / "dev.tsv").write_text("sentence\tlabel\nanother\t1\n")
    (tmp_path / "subj" / "train.csv").write_text('0,"lovely , this"\n1,he leaves town\n')
    sst2 = known_task("sst2", tmp_path)
    assert sst2.tests == (Example("another", "1"),)
    assert sst2.show(sst2.pool[0]) == 'Review: a "fine" film\nSentiment: positive\n\n'
    subj = known_task("subj", tmp_path)
    assert subj.show(subj.pool[0]) == "Input: lovely , this\nType: subjective\n\n"
    with pytest.raises(EvaluationError, match=f"no set 'sst3'; there are {', '.join(SETS)}"):
        known_task("sst3", tmp_path)
    with pytest.raises(EvaluationError, match="cannot read"):
        known_task("sst5", tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pool": [Example("x", "1")]}, "two labels or more"),
        ({"words": {"0": "same", "1": "same"}}, "a word of its own"),
        ({"words": {"7": "seven"}}, "two labels or more, each with a word of its own; it has the labels 0, 1, 2"),
        ({"prompt": "Type:"}, "a place for the text"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(EvaluationError, match=says):
        task(**changes)


def test_too_few_texts_are_said(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="60 texts, fewer than 61"):
        draw_tests(task(), 61)
    with pytest.raises(EvaluationError, match="too few texts of label"):
        draw_demonstrations(task(), draw_tests(task(), 30), (28, 4), 0)


def test_every_way_labels_the_same_items_after_what_it_may_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, small = tiny_model("llama"), character_tokenizer(), task()
    read: list[str] = []
    asked: list[str] = []
    plain_read, plain_score = Reader.read, log_probabilities

    def reading(self: Reader, ids: Any, progress: Any = None) -> None:
        read.append(tokenizer.decode(ids[0]))
        plain_read(self, ids, progress)

    def scoring(model: Any, cache: Any, question: Any, options: Any) -> list[float]:
        asked.append(tokenizer.decode(torch.cat([question, *options], dim=1)[0]))
        return plain_score(model, cache, question, options)

    monkeypatch.setattr(Reader, "read", reading)
    monkeypatch.setattr(module, "log_probabilities", scoring)
    protocol = Protocol(demonstrations=6, shots=1, items=3, seeds=1)
    record = Record(tmp_path / "icl.json", "icl", {})
    evaluate(model, tokenizer, small, [*WAYS], config=SMALL, protocol=protocol, record=record)
    assert not hasattr(model, "memory")
    tests = draw_tests(small, 3)
    before, shots = draw_demonstrations(small, tests, (6, 1), 0)
    assert read[0] == "".join(map(small.show, shots))
    assert read[1:] == ["".join(map(small.show, (*before, *shots)))] * 4
    assert asked == [f"{small.ask(test)} bad good so so" for test in tests] * 5
    assert len(read[1]) > SMALL.window_length > len(read[0])


def test_the_label_is_the_likeliest_and_a_test_item_meets_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer, small = tiny_model("llama"), character_tokenizer(), task()
    found: list[list[float]] = []

    def scoring(*given: Any) -> list[float]:
        found.append(log_probabilities(*given))
        return found[-1]

    monkeypatch.setattr(module, "log_probabilities", scoring)
    protocol = Protocol(demonstrations=3, shots=3, items=4, seeds=2)
    record = Record(tmp_path / "icl.json", "icl", {})
    evaluate(model, tokenizer, small, ["full"], config=SMALL, protocol=protocol, record=record)
    tests, given = draw_tests(small, 4), record.results["seed 1 / full"]["given"]
    before, shots = draw_demonstrations(small, tests, (3, 3), 1)
    shown = "".join(map(small.show, (*before, *shots)))
    for test, label, scores in zip(tests, given, found[4:], strict=True):
        expected = []
        for word in WORDS.values():
            ids = encode(tokenizer, f"{shown}{small.ask(test)} {word}", special=False)
            with torch.no_grad():
                rows = model(ids).logits[0].log_softmax(dim=-1)
            places = range(ids.shape[1] - len(word) - 1, ids.shape[1])
            expected.append(sum(float(rows[place - 1, ids[0, place]]) for place in places))
        assert scores == pytest.approx(expected, abs=1e-3)
        assert label == list(WORDS)[expected.index(max(expected))]
    right = sum(test.label == label for test, label in zip(tests, given, strict=True))
    assert record.results["seed 1 / full"]["accuracy"] == right / 4


def test_results_that_are_there_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(*_: Any) -> list[float]:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return [0.0, 1.0, 0.5]

    monkeypatch.setattr(module, "log_probabilities", counted)

    def go_on(seeds: int = 2) -> dict[str, Any]:
        protocol = Protocol(demonstrations=3, shots=3, items=4, seeds=seeds)
        record = Record(tmp_path / "icl.json", "icl", {})
        evaluate(
            tiny_model("llama"), character_tokenizer(), task(), ["full"], config=SMALL, protocol=protocol, record=record
        )
        return record.results

    with pytest.raises(KeyboardInterrupt):
        go_on()
    assert list(go_on()) == ["seed 0 / full", "seed 1 / full"]
    assert len(calls) == 6 + 4
    assert len(go_on(seeds=3)) == 3
    assert len(calls) == 14


def test_the_mean_over_seeds_has_its_standard_error() -> None:
    results = {f"seed {seed} / full": {"accuracy": value} for seed, value in enumerate((0.5, 0.7, 0.9))}
    mean, error = summary(results, ["full"], 3)["full"]
    assert (mean, error) == pytest.approx((0.7, 0.2 / math.sqrt(3)))
    assert math.isnan(summary(results, ["full"], 1)["full"][1])


def table(tmp_path: Path) -> str:
    path = tmp_path / "films.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((f"w{n} w{n + 1} w{n * n % 80}", "pn"[n % 2]) for n in range(60))
    return str(path)


def test_the_command_writes_a_table_json_and_a_picture(tiny_folder: str, tmp_path: Path) -> None:
    command = ["eval", "icl", tiny_folder, "--data", table(tmp_path), "--demonstrations", "20", "--shots", "2",
               "--items", "3", "--seeds", "2", "--word", "p=w5 w6", "--word", "n=w7", "--prompt", "w1 {text} w2",
               "--window", "128", "--output", str(tmp_path / "out"), "--way", "window", "--way", "memory",
               "--way", "random"]  # fmt: skip
    result = run(*command)
    assert result.exit_code == 0, result.output
    for expected in ("films", "window", "memory", "random", "±"):
        assert expected in result.stdout
    assert result.stderr == ""
    assert (tmp_path / "out" / "icl.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "out" / "icl-films.json").read_text())
    assert record["settings"]["words"] == {"p": "w5 w6", "n": "w7"}
    assert len(record["results"]) == 6
    assert run(*command).stdout == result.stdout
    assert "give another folder" in run(*command, "--shots", "4").stderr


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "give labelled texts"),
        (["--data", "DATA", "--data", "DATA"], "two sets have the same name"),
        (["--data", "DATA", "--items", "500"], "fewer than 500 test items"),
        (["--data", "DATA", "--word", "good"], "--word takes LABEL=WORD"),
        (["--data", "DATA", "--label-column", "class"], "no column class"),
        (["--dataset", "sst2"], "--data-folder"),
        (["--test", "DATA"], "--test belongs to one --data"),
    ],
)
def test_the_command_says_what_is_wrong(tiny_folder: str, tmp_path: Path, more: list[str], says: str) -> None:
    given = [table(tmp_path) if each == "DATA" else each for each in more]
    result = run("eval", "icl", tiny_folder, "--output", str(tmp_path / "out"), *given)
    assert result.exit_code == 1
    assert says in result.stderr
