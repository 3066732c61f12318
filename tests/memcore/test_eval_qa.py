"""Questions about a text: how they are read, asked and judged, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from character_tokenizer import character_tokenizer
from cli_runner import run
from tiny_models import tiny_model

from memcore import EvaluationError, MemoryConfig
from memcore.evaluation import qa as module
from memcore.evaluation.qa import evaluate, summary
from memcore.evaluation.questions import Question, normalised, read_questions
from memcore.evaluation.ranking import log_probabilities
from memcore.evaluation.record import Record
from memcore.evaluation.ways import WAYS
from memcore.prompt import opening
from memcore.reader import Answer, Reader

SMALL = MemoryConfig(window=64, chunk_size=8, sinks=4, top_k=2, question_tokens=4)
TEXT = "The captain sailed from Bergen to Cardiff in the autumn, and nobody knew what he had with him. " * 3
OPEN = Question(question="Where did he sail from?", answers=("Bergen", "the port of Bergen"))
CHOICE = Question(question="Where did he go?", answers=("Cardiff",), options=("Lisbon", "Cardiff", "Rome"))


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("Bergen", True),
        (" He sailed from BERGEN, of course.", True),
        ("from a Port of the Bergen", True),
        ("Bergens", False),
        ("Ber gen", False),
        ("", False),
    ],
)
def test_a_reply_is_right_if_it_contains_an_answer_word_for_word(reply: str, right: bool) -> None:
    assert OPEN.is_answered_by(reply) is right


def test_case_articles_punctuation_and_spaces_do_not_count() -> None:
    assert normalised("  The  Port-of \u201cBergen\u201d, a.n.d   an end!") == "port of bergen and end"
    assert normalised("theatre") == "theatre"


def test_questions_are_read_from_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    choice = {"question": "Who?", "answer": ["x", "y"], "options": ["x", "y"]}
    path.write_text(f'{{"question": "Where?", "answer": "here"}}\n\n{json.dumps(choice)}\n')
    assert read_questions(path) == [
        Question(question="Where?", answers=("here",)),
        Question(question="Who?", answers=("x", "y"), options=("x", "y")),
    ]


def test_questions_may_begin_with_a_mark_and_hold_other_ends_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_bytes(
        '\ufeff{"question": "Who\u2028or\x85what?", "answer": "x"}\r\n{"question": "Where?", "answer": "y"}'.encode()
    )
    assert [each.question for each in read_questions(path)] == ["Who\u2028or\x85what?", "Where?"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2 is not JSON"),
        ("[]", "line 2 must be an object"),
        ('{"question": "x", "answer": "y", "choices": []}', "line 2 must be an object with question, answer, options"),
        ('{"question": "x"}', "line 2: question and answer are texts"),
        ('{"question": "x", "answer": []}', "question and answer are texts"),
        ('{"question": "x", "answer": 5}', "question and answer are texts"),
        ('{"question": " ", "answer": "y"}', "question and answer are texts"),
        ('{"question": "x", "answer": "y", "options": "yz"}', "question and answer are texts"),
        ('{"question": "x", "answer": "the"}', "punctuation and articles"),
        ('{"question": "x", "answer": "y", "options": ["z", "u"]}', "the answer among them"),
        ('{"question": "x", "answer": "y", "options": ["y", "y"]}', "each once"),
        ('{"question": "Where?", "answer": "y"}', "each once"),
    ],
)
def test_what_is_no_question_is_said_with_its_line(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(f'{{"question": "Where?", "answer": "here"}}\n{line}\n')
    with pytest.raises(EvaluationError, match=says):
        read_questions(path)


@pytest.mark.parametrize("chat", [False, True])
def test_every_way_is_asked_the_same_after_what_it_may_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat: bool
) -> None:
    model, tokenizer = tiny_model("llama"), character_tokenizer() if chat else character_tokenizer(None)
    read, asked = [], []
    plain_read, plain_ask = Reader.read, Reader.ask

    def reading(self: Reader, ids: Any, progress: Any = None) -> None:
        read.append(ids)
        plain_read(self, ids, progress)

    def asking(self: Reader, question: Any, *, max_new_tokens: int) -> Any:
        asked.append(tokenizer.decode(question[0]))
        return plain_ask(self, question, max_new_tokens=max_new_tokens)

    def scoring(model: Any, cache: Any, question: Any, options: Any) -> list[float]:
        asked.append(tokenizer.decode(torch.cat([question, *options], dim=1)[0]))
        return log_probabilities(model, cache, question, options)

    monkeypatch.setattr(Reader, "read", reading)
    monkeypatch.setattr(Reader, "ask", asking)
    monkeypatch.setattr(module, "log_probabilities", scoring)
    record = Record(tmp_path / "qa.json", "qa", {})
    evaluate(model, tokenizer, TEXT, [OPEN, CHOICE], [*WAYS], config=SMALL, record=record, max_new_tokens=2)
    assert not hasattr(model, "memory")
    ids = opening(tokenizer, TEXT)
    assert all(torch.equal(each, ids) for each in read[1:])
    assert torch.equal(read[0], torch.cat([ids[:, :1], ids[:, -63:]], dim=1))
    if chat:
        after = "<end>\n[assistant]\n"
        expected = [OPEN.question + after, f"{CHOICE.question}{after}LisbonCardiffRome"]
    else:
        expected = [
            f"Question: {OPEN.question}\nAnswer:",
            f"Question: {CHOICE.question}\nAnswer: Lisbon Cardiff Rome",
        ]
    assert asked == expected * 5


def test_the_likeliest_option_and_the_generated_words_are_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, replies = character_tokenizer(None), iter([" In Bergen.\nQuestion: Oslo", " Oslo.\nIn Bergen"])

    def said(*_: Any, **__: Any) -> Answer:
        return Answer(text=next(replies), token_ids=torch.zeros(0), seconds=0.0)

    monkeypatch.setattr(module, "log_probabilities", lambda *_: [-3.0, -1.0, -2.0])
    monkeypatch.setattr(Reader, "ask", said)
    again = Question(question="From where?", answers=("Bergen",))
    wrong = Question(question="Where not?", answers=("Rome",), options=CHOICE.options)
    record = Record(tmp_path / "qa.json", "qa", {})
    asked = [OPEN, again, CHOICE, wrong]
    evaluate(tiny_model("llama"), tokenizer, TEXT, asked, ["full"], config=SMALL, record=record)
    # Of a model that goes on by itself, the first line counts.
    assert [each["right"] for each in record.results.values()] == [True, False, True, False]
    assert [each["reply"] for each in record.results.values()][2:] == ["Cardiff", "Cardiff"]
    assert summary(record.results, ["full"], asked) == {"full": 0.5}


@pytest.mark.parametrize("way", ["full", "memory"])
def test_a_question_meets_no_other(tmp_path: Path, way: str) -> None:
    before = Question(question="And who was he?", answers=("Rome",), options=CHOICE.options)

    def asked(*questions: Question) -> Any:
        record = Record(tmp_path / f"{len(questions)}.json", "qa", {})
        evaluate(
            tiny_model("llama"), character_tokenizer(), TEXT, questions, [way], config=SMALL, record=record,
            max_new_tokens=3,
        )  # fmt: skip
        return record.results[f"{way} / {CHOICE.question}"]["scores"]

    assert asked(before, OPEN, CHOICE) == asked(CHOICE)


def test_results_that_are_there_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(*_: Any) -> list[float]:
        calls.append("")
        if len(calls) == 2:
            raise KeyboardInterrupt
        return [0.0, 1.0, 0.5]

    monkeypatch.setattr(module, "log_probabilities", counted)
    asked = [CHOICE, Question(question="And then?", answers=("Rome",), options=CHOICE.options)]

    def go_on() -> dict[str, Any]:
        record = Record(tmp_path / "qa.json", "qa", {})
        evaluate(
            tiny_model("llama"), character_tokenizer(), TEXT, asked, ["full", "window"], config=SMALL, record=record
        )
        return record.results

    with pytest.raises(KeyboardInterrupt):
        go_on()
    assert list(go_on()) == [
        "full / Where did he go?",
        "full / And then?",
        "window / Where did he go?",
        "window / And then?",
    ]
    assert len(calls) == 2 + 3
    go_on()
    assert len(calls) == 5


def files(tmp_path: Path) -> list[str]:
    (tmp_path / "text.txt").write_text(" ".join(f"w{n * n % 90}" for n in range(300)))
    (tmp_path / "questions.jsonl").write_text(
        '{"question": "w1 w2", "answer": "w3", "options": ["w3", "w4 w5"]}\n{"question": "w5", "answer": "w6"}\n'
    )
    return ["--file", str(tmp_path / "text.txt"), "--questions", str(tmp_path / "questions.jsonl")]


def test_the_command_writes_a_table_json_and_a_picture(tiny_folder: str, tmp_path: Path) -> None:
    command = ["eval", "qa", tiny_folder, *files(tmp_path), "--window", "128", "--max-new-tokens", "3", "--output",
               str(tmp_path / "out"), "--way", "window", "--way", "memory"]  # fmt: skip
    result = run(*command)
    assert result.exit_code == 0, result.output
    for expected in ("window", "memory", "w1 w2", "answered", "%"):
        assert expected in result.stdout
    assert result.stderr == ""
    assert (tmp_path / "out" / "qa.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((tmp_path / "out" / "qa.json").read_text())["results"]) == 4
    assert run(*command).stdout == result.stdout
    (tmp_path / "questions.jsonl").write_text('{"question": "w5", "answer": "w7"}\n')
    assert "give another folder" in run(*command).stderr


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--prompt", "Answer:"], "a place for the question"),
        (["--file", "nowhere.txt"], "cannot read 'nowhere.txt'"),
        (["--file", "blank.txt"], "blank.txt has no text in it"),
        (["--questions", "nowhere.jsonl"], "cannot read 'nowhere.jsonl'"),
        (["--way", "chunks"], "no way of reading 'chunks'"),
    ],
)
def test_the_command_says_what_is_wrong(
    tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("blank.txt").write_text(" \n")
    result = run("eval", "qa", tiny_folder, *files(tmp_path), "--output", str(tmp_path / "out"), *more)
    assert result.exit_code == 1
    assert says in result.stderr
