"""A whole training, stage after stage, which goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import attrs
from torch import Tensor

from memcore.adapter import wrap
from memcore.errors import MissingDependencyError, TrainingError
from memcore.files import make_folder, parse_json, replacing
from memcore.model_source import load_model
from memcore.options import describe, unstructure
from memcore.training.configuration import TrainingConfig
from memcore.training.documents import check_apart, digests, read_documents, tokenize
from memcore.training.log import TrainingLog
from memcore.training.segments import DocumentSegments
from memcore.training.stage import Stage, StageResult, Start
from memcore.training.trainable import make_trainable

RUN: Final = "run.json"
"""File of the output folder that says what it is the output of."""

LOG: Final = "log.jsonl"
PICTURE: Final = "loss.png"


@attrs.frozen(kw_only=True)
class TrainingResult:
    """What came of a training.

    Attributes:
        stages: those that were begun.
        finished: whether all steps are done; False if the user interrupted it.
    """

    stages: tuple[StageResult, ...]
    finished: bool


def begun(output: Path) -> bool:
    """Say whether a folder holds a training, finished or not."""
    return (output / RUN).exists()


def train(
    config: TrainingConfig, *, note: Callable[[str], None] | None = None, progress: Start | None = None
) -> TrainingResult:
    """Train a model, or go on with that.

    Everything is written to ``config.output``: ``trained.safetensors`` and ``trained.json`` (see
    :func:`memcore.load_trained`) when the last stage is done, and those of stages before it in folders of their own,
    ``log.jsonl`` and ``loss.png``. The same call goes on from the latest checkpoint, also where the texts lie elsewhere
    by now, if they are found by the same patterns; what was begun when ``run.json`` had paths is refused.

    Args:
        config: all of it.
        note: told in a line what happens.
        progress: told how far it is.

    Raises:
        TrainingError: it cannot be done as asked, or the folder holds another training.
        ConfigError: the memory cannot be made.
        UnsupportedModelError: the model cannot be loaded, or can have no memory.
        MissingDependencyError: a package is missing.
    """
    _check_dependencies()
    note = note or (lambda line: None)
    training, evaluation = read_documents(config.documents), read_documents(config.evaluation)
    check_apart(training, evaluation)
    described = _described(config, digests([*training.items(), *evaluation.items()]))
    _check_ours(config.output, described)
    make_folder(config.output)
    model, tokenizer = load_model(config.model, device="cpu" if config.device == "cpu" else "", dtype=config.dtype)
    ids = tokenize(tokenizer, training, config.data.max_tokens)
    data = _segments("documents", ids, config, config.data.rows)
    held_out = tokenize(tokenizer, evaluation, config.data.max_evaluation_tokens)
    measured = _segments("evaluation", held_out, config, 1) if evaluation else None
    note(f"{len(ids)} documents, {data.tokens:,} of {sum(map(len, ids)):,} tokens to train on")
    wrap(model, config.memory, tokenizer=tokenizer)
    if not begun(config.output):  # only now, when there is nothing left to refuse
        with replacing(config.output / RUN) as new:
            new.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    log = TrainingLog(config.output / LOG)
    results: list[StageResult] = []
    for number, (name, stage) in enumerate(zip(config.stage_names, config.stages, strict=True), 1):
        last = number == len(config.stages)
        folder = config.output / f"{number}-{name}"
        run = Stage(name, stage, folder, config.output if last else folder, log, config, note)
        share = make_trainable(model, stage.plan, seed=config.seed + number)
        note(f"{name}: {share}")
        interrupted = run.train(model, data, measured, progress)
        results.append(run.result(share))
        log.picture(config.output / PICTURE, f"Training of {config.model}")
        if interrupted and not (last and run.done):
            return TrainingResult(stages=tuple(results), finished=False)
    return TrainingResult(stages=tuple(results), finished=True)


def _segments(field: str, documents: list[Tensor], config: TrainingConfig, rows: int) -> DocumentSegments:
    try:
        return DocumentSegments(documents, rows=rows, segment=config.data.segment, seed=config.seed)
    except TrainingError as error:
        raise TrainingError(f"{field}: {error}") from error


def _described(config: TrainingConfig, texts: dict[str, list[str]]) -> dict[str, Any]:
    """Return what a training is of, as JSON gives it back."""
    described: dict[str, Any] = json.loads(
        json.dumps({"config": {**unstructure(config), "output": None}, "texts": texts})
    )
    return described


def _check_ours(output: Path, mine: dict[str, Any]) -> None:
    """Raise unless the output folder holds this training or none.

    Raises:
        TrainingError: it holds another, or does not say which.
    """
    path = output / RUN
    if begun(output):
        try:
            found = parse_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TrainingError(f"{path} does not say what training this is: {error}") from error
        if not isinstance(found, dict):
            raise TrainingError(f"{path} does not say what training this is, but {describe(found)}")
        was, now = dict(_flat(found)), dict(_flat(mine))
        differ = [
            f"{name} = {was.get(name)!r}, not {now.get(name)!r}"
            for name in sorted({*was, *now})
            if was.get(name) != now.get(name)
        ]
        if differ:
            raise TrainingError(
                f"{output} holds a training with {'; '.join(differ[:5])}; give another output folder, or remove it"
            )


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings and lists, with names such as ``stages.0.steps``."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _check_dependencies() -> None:
    """Raise MissingDependencyError early: pictures come last."""
    from memcore.evaluation.plots import check_drawing

    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError('training needs accelerate: pip install "memcore-llm[train]"') from error
    check_drawing()
