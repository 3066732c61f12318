"""In-context learning: labels of texts by demonstrations, a few in the window and many in what was read before."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs
from torch import Tensor

from memcore.config import MemoryConfig
from memcore.evaluation.labelled_texts import Example, Task, draw_demonstrations, draw_tests
from memcore.evaluation.ranking import encode_options, log_probabilities
from memcore.evaluation.record import Record
from memcore.evaluation.ways import check_ways, read_as, seen
from memcore.prompt import encode
from memcore.reader import Progress, Reader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@attrs.frozen(kw_only=True)
class Protocol:
    """How in-context learning is measured.

    Attributes:
        demonstrations: read before; the way ``"window"`` goes without.
        shots: more demonstrations, right before the test item in every way.
        items: test items, the same for all seeds.
        seeds: of the demonstrations.
    """

    demonstrations: int
    shots: int
    items: int
    seeds: int


def result_name(seed: int, way: str) -> str:
    """Return the name of one result."""
    return f"seed {seed} / {way}"


def evaluate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    ways: Sequence[str],
    *,
    config: MemoryConfig,
    protocol: Protocol,
    record: Record,
    progress: Callable[[str, int], Progress] | None = None,
) -> None:
    """Label every test item in every way, and keep the results of each seed; what is there is not done again.

    Demonstrations are read once for each seed, and every test item goes on from a copy of that: it meets no other one.
    The label is the one whose word is likeliest, by the sum of its tokens' log-probabilities.

    Args:
        model: wrapped or not, see :func:`memcore.evaluation.ways.read_as`.
        tokenizer: the model's.
        task: what to label.
        ways: see :data:`memcore.evaluation.ways.WAYS`.
        config: the memory's.
        protocol: how much of everything.
        record: where results go.
        progress: given what is labelled and how many items there are, returns what is told how far it is.

    Raises:
        EvaluationError: there are too few texts, or no such way.
    """
    check_ways(ways, config)
    tests = draw_tests(task, protocol.items)
    counts = (protocol.demonstrations, protocol.shots)
    drawn = [draw_demonstrations(task, tests, counts, seed) for seed in range(protocol.seeds)]
    for way in ways:
        left = [seed for seed in range(protocol.seeds) if result_name(seed, way) not in record.results]
        if not left:
            continue
        with read_as(model, way, config, tokenizer):
            for seed in left:
                before, shots = drawn[seed]
                shown = shots if way == "window" else [*before, *shots]
                ids = encode(tokenizer, "".join(map(task.show, shown)), special=True)
                tell = progress(f"{task.name}, seed {seed}, {way}", len(tests)) if progress is not None else None
                result = _label(model, tokenizer, task, seen(ids, way, config), tests, tell)
                record.add(result_name(seed, way), result)


def _label(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    ids: Tensor,
    tests: Sequence[Example],
    tell: Progress | None,
) -> dict[str, Any]:
    begun, labels, given = time.perf_counter(), list(task.words), []
    reader = Reader(model, tokenizer)
    reader.read(ids)
    for done, example in enumerate(tests, start=1):
        question, options = encode_options(tokenizer, task.ask(example), list(task.words.values()))
        scores = log_probabilities(model, reader.cache(), question, options)
        given.append(labels[scores.index(max(scores))])
        if tell is not None:
            tell(done, len(tests))
    right = sum(label == example.label for label, example in zip(given, tests, strict=True))
    return {
        "accuracy": right / len(tests),
        "given": given,
        "read": ids.shape[1],
        "seconds": time.perf_counter() - begun,
    }


def summary(results: dict[str, Any], ways: Sequence[str], seeds: int) -> dict[str, tuple[float, float]]:
    """Return mean accuracy and its standard error over the seeds, for each way; the error of one seed is NaN."""
    table = {}
    for way in ways:
        values = [float(results[result_name(seed, way)]["accuracy"]) for seed in range(seeds)]
        error = statistics.stdev(values) / math.sqrt(seeds) if seeds > 1 else math.nan
        table[way] = (statistics.mean(values), error)
    return table
