"""One stage of a training: what trains, how, and where it goes on."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch
from transformers import PrinterCallback, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from memcore.files import parse_json
from memcore.training.configuration import StageConfig, TrainingConfig
from memcore.training.interruption import Interruption
from memcore.training.log import EVALUATION, LOSS, TrainingLog
from memcore.training.saved import DESCRIPTION, restore_trained, save_trained
from memcore.training.segments import DocumentSegments
from memcore.training.trainable import TrainableShare
from memcore.training.trainer import MemoryTrainer

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


class Stage:
    """One stage, in a folder with its checkpoints, and a folder for its weights when it is done.

    Attributes:
        done: whether they are there.
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
        """Look up how far it is.

        Args:
            name: of the stage.
            stage: how it trains.
            folder: of its checkpoints.
            result: folder for its weights.
            log: of the training.
            config: of the training.
            note: told in a line what happens.
        """
        self._name, self._stage, self._folder, self._result = name, stage, folder, result
        self._log, self._config, self._note = log, config, note
        self.done = (result / DESCRIPTION).exists()

    def train(
        self, model: Any, data: DocumentSegments, measured: DocumentSegments | None, progress: Start | None
    ) -> bool:
        """Train, if it is not done, or else take the weights that it gave.

        Args:
            model: wrapped, and made trainable by the stage's plan.
            data: to train on.
            measured: to evaluate on; None for no evaluation.
            progress: told how far it is.

        Returns:
            Whether the user interrupted it.
        """
        if self.done:
            restore_trained(model, self._result)
            return False
        steps = self._stage.total_steps(len(data) // data.rows)
        checkpoint = _latest(self._folder)
        interruption = Interruption(self._note)
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
        parse_json((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))  # what is written last
    except (OSError, ValueError):
        return False
    return True


def _checkpointing_name() -> str:
    """Return what transformers calls gradient checkpointing, of which the older name is on its way out."""
    new = "activation_checkpointing"
    return new if new in TrainingArguments.__dataclass_fields__ else "gradient_checkpointing"
