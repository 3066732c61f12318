"""Texts with labels: read from a table, and drawn as test items and demonstrations."""

from __future__ import annotations

import csv
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs

from memcore.errors import EvaluationError
from memcore.files import ENCODING


@attrs.frozen
class Example:
    """A text and its label, as they stand in the table."""

    text: str
    label: str


@attrs.frozen(kw_only=True)
class Task:
    """A set of labelled texts, and how a model is asked for a label.

    Attributes:
        name: of the set.
        pool: what demonstrations are drawn from, each text once.
        tests: what test items are drawn from; empty for the pool, too.
        words: what each label is called.
        prompt: what stands before the word, with ``{text}`` in it.
    """

    name: str
    pool: tuple[Example, ...]
    tests: tuple[Example, ...] = ()
    words: Mapping[str, str]
    prompt: str

    def ask(self, example: Example) -> str:
        """Return what a model has to go on from."""
        return self.prompt.replace("{text}", example.text)

    def show(self, example: Example) -> str:
        """Return a demonstration."""
        return f"{self.ask(example)} {self.words[example.label]}\n\n"


@attrs.frozen(kw_only=True)
class Known:
    """A public set that is recognised by its files."""

    train: str
    test: str = ""
    columns: tuple[str, ...] = ()
    text: str = "text"
    label: str = "label"
    words: Mapping[str, str]
    prompt: str


_REVIEW: Final = "Review: {text}\nSentiment:"

SETS: Final = {
    "sst2": Known(
        train="SST-2/train.tsv",
        test="SST-2/dev.tsv",
        text="sentence",
        words={"0": "negative", "1": "positive"},
        prompt=_REVIEW,
    ),
    "sst5": Known(
        train="sst-5/train.csv",
        columns=("label", "text"),
        words={"0": "terrible", "1": "bad", "2": "okay", "3": "good", "4": "great"},
        prompt=_REVIEW,
    ),
    "subj": Known(
        train="subj/train.csv",
        columns=("label", "text"),
        words={"0": "subjective", "1": "objective"},
        prompt="Input: {text}\nType:",
    ),
}
"""Public sets by name: which files of the folder, which columns, which words."""


def read_examples(
    path: Path, *, text: str = "text", label: str = "label", columns: Sequence[str] = ()
) -> tuple[Example, ...]:
    """Read a ``.csv`` or ``.tsv`` file; of a text that stands there twice, the first.

    Args:
        path: of the file, UTF-8. Quotes have a meaning in ``.csv`` only.
        text: the column of the texts.
        label: the column of the labels.
        columns: what the columns are called, if the first line does not say so.

    Raises:
        EvaluationError: it cannot be read, or lacks a column.
    """
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv"):
        raise EvaluationError(f"labelled texts are a .csv or .tsv file; got {str(path)!r}")
    try:
        with path.open(encoding=ENCODING, newline="") as file:
            names = columns or None
            table = (
                csv.DictReader(file, names)
                if suffix == ".csv"
                else csv.DictReader(file, names, delimiter="\t", quoting=csv.QUOTE_NONE)
            )
            missing = {text, label} - set(table.fieldnames or ())
            if missing:
                raise EvaluationError(
                    f"{path} has no column {', '.join(sorted(missing))}; it has {', '.join(table.fieldnames or ())}"
                )
            rows = [(row[text], row[label]) for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EvaluationError(f"cannot read {str(path)!r}: {error}") from error
    found: dict[str, Example] = {}
    for said, called in rows:
        if said and called and said.strip():
            found.setdefault(said.strip(), Example(said.strip(), called.strip()))
    return tuple(found.values())


def make_task(
    name: str, pool: Sequence[Example], tests: Sequence[Example], *, words: Mapping[str, str], prompt: str
) -> Task:
    """Make a task; a label without a word is its own.

    Raises:
        EvaluationError: there are fewer than two labels, or labels with the same word; a word belongs to no label; or
            the prompt has no place for the text.
    """
    labels = sorted({example.label for example in (*pool, *tests)})
    named = {label: words.get(label, label) for label in labels}
    if len(labels) < 2 or len(set(named.values())) < len(labels) or set(words) - set(labels):
        raise EvaluationError(
            f"{name} must have two labels or more, each with a word of its own; it has the labels "
            f"{', '.join(labels) or 'none'}, with the words {dict(words)}"
        )
    if "{text}" not in prompt:
        raise EvaluationError(f"the prompt must have a place for the text, {{text}}; got {prompt!r}")
    return Task(name=name, pool=tuple(pool), tests=tuple(tests), words=named, prompt=prompt)


def known_task(name: str, folder: Path) -> Task:
    """Read one of :data:`SETS` from a folder.

    Raises:
        EvaluationError: there is no such set, or its files are not there.
    """
    if name not in SETS:
        raise EvaluationError(f"no set {name!r}; there are {', '.join(SETS)}, and any file by --data")
    known = SETS[name]

    def read(file: str) -> tuple[Example, ...]:
        return read_examples(folder / file, text=known.text, label=known.label, columns=known.columns) if file else ()

    return make_task(name, read(known.train), read(known.test), words=known.words, prompt=known.prompt)


def draw_tests(task: Task, items: int) -> list[Example]:
    """Return the test items: the same ones whatever the demonstrations.

    Raises:
        EvaluationError: there are fewer.
    """
    among = task.tests or task.pool
    if len(among) < items:
        raise EvaluationError(f"{task.name} has {len(among)} texts, fewer than {items} test items")
    return random.Random(f"tests of {task.name}").sample(among, items)


def draw_demonstrations(task: Task, tests: Sequence[Example], counts: Sequence[int], seed: int) -> list[list[Example]]:
    """Return groups of demonstrations, each with its labels in balance and in an order by chance.

    No text is in two groups, and none is one of the test items, or of the texts that those were drawn from if these
    are apart from the pool.

    Args:
        task: what to draw from.
        tests: the test items.
        counts: of each group. What does not divide by the number of labels goes to labels by chance.
        seed: which demonstrations.

    Raises:
        EvaluationError: a label has too few.
    """
    chance = random.Random(f"demonstrations of {task.name}, {seed}")
    barred = {example.text for example in (*tests, *task.tests)}
    left: dict[str, list[Example]] = defaultdict(list)
    for example in chance.sample(task.pool, len(task.pool)):
        if example.text not in barred:
            left[example.label].append(example)
    groups = []
    for count in counts:
        each, more = divmod(count, len(task.words))
        extra = chance.sample(sorted(task.words), more)
        group: list[Example] = []
        for label in sorted(task.words):
            wanted = each + (label in extra)
            if len(left[label]) < wanted:
                raise EvaluationError(
                    f"{task.name} has too few texts of label {label!r} for {sum(counts)} demonstrations in balance; "
                    "ask for fewer, or for fewer test items"
                )
            group += [left[label].pop() for _ in range(wanted)]
        chance.shuffle(group)
        groups.append(group)
    return groups
