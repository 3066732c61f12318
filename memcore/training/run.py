"""A whole training, stage after stage, which goes on where it stopped."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import attrs
import torch
from transformers import PrinterCallback, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from memcore.adapter import wrap
from memcore.errors import MissingDependencyError, TrainingError
from memcore.options import unstructure
from memcore.reader import load_model
from memcore.training.configuration import StageConfig, TrainingConfig
from memcore.training.documents import check_apart, digests, read_documents, tokenize
from memcore.training.interruption import Interruption
from memcore.training.log import EVALUATION, LOSS, TrainingLog
from memcore.training.saved import DESCRIPTION, restore_trained, save_trained
from memcore.training.segments import DocumentSegments
from memcore.training.trainable import TrainableShare, make_trainable
from memcore.training.trainer import MemoryTrainer

RUN: Final = "run.json"
"""File of the output folder that says what it is the output of."""

LOG: Final = "log.jsonl"
PICTURE: Final = "loss.png"

Start = Callable[[str, int | None], Callable[[int, int], None]]
"""Called with a description and how many tokens will be read; returns what to call with (tokens done, in all)."""


@attrs.frozen(kw_only=True)
class StageResult:
    """What came of a stage.

    Attributes:
        name: of the stage.
        share: how much of the model it trained.
        steps: that it took.
        loss: of the last steps that were logged; None if there are none yet.
        before: loss on the evaluation texts before the first step; None without such texts.
        after: the latest one.
    """

    name: str
    share: TrainableShare
    steps: int
    loss: float | None
    before: float | None
    after: float | None


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
    ``log.jsonl`` and ``loss.png``. The same call goes on from the latest checkpoint.

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
    _claim(config, {**digests(training), **digests(evaluation)})
    model, tokenizer = load_model(config.model, device="cpu" if config.device == "cpu" else "", dtype=config.dtype)
    data = _segments(tokenize(tokenizer, training, config.data.max_tokens), config, config.data.rows)
    measured = (
        _segments(tokenize(tokenizer, evaluation, config.data.max_evaluation_tokens), config, 1) if evaluation else None
    )
    note(f"{len(training)} documents, {data.tokens:,} tokens to train on")
    wrap(model, config.memory, tokenizer=tokenizer)
    log = TrainingLog(config.output / LOG)
    results: list[StageResult] = []
    for number, (name, stage) in enumerate(zip(config.stage_names, config.stages, strict=True), 1):
        last = number == len(config.stages)
        folder = config.output / f"{number}-{name}"
        run = _Stage(name, stage, folder, config.output if last else folder, log, config, note)
        share = make_trainable(model, stage.plan, seed=config.seed + number)
        note(f"{name}: {share}")
        interrupted = run.train(model, data, measured, progress)
        results.append(run.result(share))
        log.picture(config.output / PICTURE, f"Training of {config.model}")
        if interrupted and not (last and run.done):
            return TrainingResult(stages=tuple(results), finished=False)
    return TrainingResult(stages=tuple(results), finished=True)


class _Stage:
    """One stage, in a folder with its checkpoints.

    Attributes:
        done: whether its weights are there.
    """

    def __init__(
        self,
        name: str,
        stage: StageConfig,
        folder: Path,
        result: Path,
        log: TrainingLog,
        config: TrainingConfig,
        note: Callable[[str], None],
    ) -> None:
        self._name, self._stage, self._folder, self._result = name, stage, folder, result
        self._log, self._config, self._note = log, config, note
        self.done = (result / DESCRIPTION).exists()

    def train(
        self, model: Any, data: DocumentSegments, measured: DocumentSegments | None, progress: Start | None
    ) -> bool:
        """Train, if it is not done, and say whether the user interrupted it."""
        if self.done:
            restore_trained(model, self._result)
            return False
        steps = self._stage.total_steps(len(data) // data.rows)
        checkpoint = _latest(self._folder)
        interruption = Interruption()
        callbacks: list[TrainerCallback] = [interruption, _Note(self._name, self._log, self._note)]
        if progress is not None:
            tokens = self._config.data.rows * self._config.data.segment * self._stage.accumulation
            callbacks.append(_Steps(progress(self._name, steps * tokens), tokens))
        trainer = MemoryTrainer(
            model,
            self._arguments(steps, measured is not None, fresh=checkpoint is None),
            train_dataset=data,
            eval_dataset=measured,
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        state = None if checkpoint is None else TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        self._log.rewind(self._name, -1 if state is None else state.global_step)
        if checkpoint is not None and state is not None and state.global_step >= steps:
            restore_trained(model, checkpoint)
            trainer.state = state
        else:
            with interruption.awaited():
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if trainer.state.global_step >= steps:
            if measured is not None and steps not in self._log.values(self._name, EVALUATION):
                trainer.evaluate()
            save_trained(model, self._result)
            self.done = True
        # The next stage may have another precision, and accelerate prepares no model a second time.
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        vars(model).pop("_is_accelerate_prepared", None)
        if self._stage.gradient_checkpointing:
            getattr(model, f"{_checkpointing_name()}_disable")()
        model.eval()
        return interruption.came

    def _arguments(self, steps: int, evaluated: bool, *, fresh: bool) -> TrainingArguments:
        stage, checkpointing = self._stage, _checkpointing_name()
        chosen: dict[str, Any] = {checkpointing: True, f"{checkpointing}_kwargs": {"use_reentrant": False}}
        return TrainingArguments(
            output_dir=str(self._folder),
            per_device_train_batch_size=self._config.data.rows,
            per_device_eval_batch_size=1,
            gradient_accumulation_steps=stage.accumulation,
            max_steps=steps,
            learning_rate=stage.learning_rate,
            warmup_steps=stage.warmup(steps),
            lr_scheduler_type="constant_with_warmup" if stage.schedule == "constant" else stage.schedule,
            weight_decay=stage.weight_decay,
            max_grad_norm=stage.max_grad_norm,
            bf16=stage.bf16,
            logging_steps=stage.log_every,
            logging_first_step=True,
            save_strategy="steps",
            save_steps=stage.save_every,
            save_total_limit=2,
            eval_strategy="steps" if evaluated and stage.evaluate_every else "no",
            eval_steps=stage.evaluate_every,
            eval_on_start=evaluated and fresh,
            use_cpu=self._config.device == "cpu",
            dataloader_pin_memory=self._config.device != "cpu" and torch.cuda.is_available(),
            seed=self._config.seed,
            disable_tqdm=True,
            report_to="none",
            **(chosen if stage.gradient_checkpointing else {}),
        )

    def result(self, share: TrainableShare) -> StageResult:
        """Return what has come of it."""
        losses, measured = (list(self._log.values(self._name, name).values()) for name in (LOSS, EVALUATION))
        return StageResult(
            name=self._name,
            share=share,
            steps=max((line["step"] for line in self._log.lines if line["stage"] == self._name), default=0),
            loss=losses[-1] if losses else None,
            before=measured[0] if measured else None,
            after=measured[-1] if measured else None,
        )


class _Note(TrainerCallback):
    """Writes losses to the log, and tells of evaluations."""

    def __init__(self, stage: str, log: TrainingLog, note: Callable[[str], None]) -> None:
        self._stage, self._log, self._note = stage, log, note

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log |= state.global_step >= state.max_steps

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        values = {name: float(logs[name]) for name in (LOSS, "learning_rate", "grad_norm", EVALUATION) if name in logs}
        if LOSS in values or EVALUATION in values:
            self._log.add(self._stage, state.global_step, values)
        if EVALUATION in values:
            self._note(
                f"{self._stage}: loss {values[EVALUATION]:.4f} on the evaluation texts at step {state.global_step:,}"
            )


class _Steps(TrainerCallback):
    """Tells how many tokens have been trained on."""

    def __init__(self, progress: Callable[[int, int], None], tokens: int) -> None:
        self._progress, self._tokens = progress, tokens

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress(state.global_step * self._tokens, state.max_steps * self._tokens)


def _segments(documents: Any, config: TrainingConfig, rows: int) -> DocumentSegments:
    return DocumentSegments(documents, rows=rows, segment=config.data.segment, seed=config.seed)


def _latest(folder: Path) -> Path | None:
    """Return the latest checkpoint that is whole."""
    found = {
        int(match[1]): path
        for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (match := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name)) and _whole(path)
    }
    return found[max(found)] if found else None


def _whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))  # what is written last
    except (OSError, ValueError):
        return False
    return True


def _checkpointing_name() -> str:
    """Return what transformers calls gradient checkpointing, of which the older name is on its way out."""
    new = "activation_checkpointing"
    return new if new in TrainingArguments.__dataclass_fields__ else "gradient_checkpointing"


def _claim(config: TrainingConfig, texts: dict[str, str]) -> None:
    """Say in the output folder what it is the output of.

    Raises:
        TrainingError: it is that of something else.
    """
    path = config.output / RUN
    mine = {"config": {**unstructure(config), "output": None}, "texts": texts}
    mine = json.loads(json.dumps(mine))
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TrainingError(f"{path} does not say what training this is: {error}") from error
        was, now = dict(_flat(found)), dict(_flat(mine))
        differ = [
            f"{name} = {was.get(name)!r}, not {now.get(name)!r}"
            for name in sorted({*was, *now})
            if was.get(name) != now.get(name)
        ]
        if differ:
            raise TrainingError(
                f"{config.output} holds a training with {'; '.join(differ[:5])}; give another output folder, or "
                "remove it"
            )
        return
    config.output.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".part")
    new.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8")
    new.replace(path)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings and lists, with names such as ``stages.0.steps``."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _check_dependencies() -> None:
    """Raise MissingDependencyError early: pictures come last."""
    from memcore.evaluation.plots import canvas

    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError('training needs accelerate: pip install "memcore-llm[train]"') from error
    canvas("")
