"""Questions about a text, from JSON lines, and whether a reply answers them."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from memcore.errors import EvaluationError, UnsupportedInputError
from memcore.files import parse_json, read_text

_FIELDS: Final = ("question", "answer", "options")


@attrs.frozen(kw_only=True)
class Question:
    """A question about a text.

    Attributes:
        question: what is asked.
        answers: any of them is right.
        options: to choose from; none for a question that is answered in the model's own words.
    """

    question: str
    answers: tuple[str, ...]
    options: tuple[str, ...] = ()

    def is_answered_by(self, reply: str) -> bool:
        """Whether a reply contains an answer, word for word, after :func:`normalised` took away what does not count."""
        padded = f" {normalised(reply)} "
        return any(f" {normalised(answer)} " in padded for answer in self.answers)


def normalised(text: str) -> str:
    """Return a text in lower case, without punctuation, English articles and more than one space at a time."""
    plain = "".join(" " if each in "-–—/" else each for each in text.lower())
    plain = "".join(each for each in plain if each not in string.punctuation + "’‘“”")
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def read_questions(path: Path) -> list[Question]:
    """Read questions, one JSON object a line: ``question``, ``answer`` (one or a list) and perhaps ``options``.

    Raises:
        EvaluationError: the file cannot be read, or a line is no such object; the message says which.
    """
    try:
        lines = read_text(path).split("\n")  # a text in JSON may hold other ends of lines
    except UnsupportedInputError as error:
        raise EvaluationError(str(error)) from error
    questions = [_question(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not questions or len({each.question for each in questions}) < len(questions):
        raise EvaluationError(f"{path} must hold questions, each once; it holds {len(questions)}")
    return questions


def _question(line: str, where: str) -> Question:
    try:
        found: Any = parse_json(line)
    except ValueError as error:
        raise EvaluationError(f"{where} is not JSON: {error}") from error
    if not isinstance(found, Mapping) or set(found) - set(_FIELDS):
        raise EvaluationError(f"{where} must be an object with {', '.join(_FIELDS)}; got {line.strip()[:200]}")
    given, options = found.get("answer"), found.get("options", [])
    answers: list[Any] = given if isinstance(given, list) else [given]
    if not _texts([found.get("question")]) or not answers or not _texts(answers) or not _texts(options):
        raise EvaluationError(
            f"{where}: question and answer are texts (answer may be a list of them), options a list of texts, none of "
            f"them empty; got {line.strip()[:200]}"
        )
    if not options and not all(map(normalised, answers)):
        raise EvaluationError(
            f"{where}: an answer of nothing but punctuation and articles is in every reply; give options"
        )
    if options and (len(set(options)) < max(2, len(options)) or not set(answers) <= set(options)):
        raise EvaluationError(f"{where}: options must be two or more, each once, the answer among them; got {options}")
    return Question(question=found["question"].strip(), answers=tuple(answers), options=tuple(options))


def _texts(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(each, str) and each.strip() for each in values)
