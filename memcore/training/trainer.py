"""A Trainer that carries memory from one segment of a document to the next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from torch.utils.data import SequentialSampler
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from memcore.cache import MemoryCache
from memcore.cache_argument import cache_argument
from memcore.errors import TrainingError
from memcore.memory import Memory
from memcore.training.memory_state import load_memory, save_memory
from memcore.training.saved import restore_trained, save_trained
from memcore.training.segments import BEGINS, DocumentSegments

_STATE: Final = "memory.safetensors"
"""File of a checkpoint that holds what the memory was when it was made."""


class MemoryTrainer(Trainer):
    """``transformers.Trainer`` for a wrapped model and :class:`~memcore.training.segments.DocumentSegments`.

    Each step goes on with the memory and the window that the step before left, and begins anew where documents begin.
    Gradients end at the segment: what lies in the window and in memory is data. Checkpoints hold of the model only the
    weights that train, which :func:`memcore.load_trained` loads; and the memory, so that training resumes in the middle
    of a document.
    """

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        """Take what ``Trainer`` takes.

        Raises:
            TrainingError: the model has no memory, a dataset is of another kind, or its rows are not those of the
                arguments.
        """
        super().__init__(model, *args, **kwargs)
        if not isinstance(_memory(self.model), Memory):
            raise TrainingError("the model has no memory to train with; memcore.wrap(model, ...) gives it one")
        if self.args.n_gpu > 1 or self.args.world_size > 1:
            raise TrainingError("memory is carried from step to step by one process on one device")
        for data, size in (
            (self.train_dataset, self.args.per_device_train_batch_size),
            (self.eval_dataset, self.args.per_device_eval_batch_size),
        ):
            if data is not None and not (isinstance(data, DocumentSegments) and data.rows == size):
                raise TrainingError(
                    f"a dataset must be DocumentSegments whose rows are the batch size, {size}; got "
                    + (f"{data.rows} rows" if isinstance(data, DocumentSegments) else type(data).__name__)
                )
        self._cache: MemoryCache | None = None

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        if BEGINS not in columns:
            columns.append(BEGINS)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        data: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(data)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Go on with the memory that the step before left, or with none where documents begin."""
        begins = inputs.pop(BEGINS)
        if self._cache is None or bool(begins.all()):
            self._cache = _memory(model).new_cache()
        cache = self._cache
        memory = _memory(model)
        try:
            with memory.reading(question=False):
                result = super().compute_loss(model, inputs | {cache_argument(model.forward): cache}, *args, **kwargs)
        except BaseException:
            self._cache = None  # half filled
            raise
        cache.detach()
        return result

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate with a memory of its own; training goes on with the one it had."""
        with self._set_aside():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Predict with a memory of its own; training goes on with the one it had."""
        with self._set_aside():
            return super().predict(*args, **kwargs)

    @contextmanager
    def _set_aside(self) -> Iterator[None]:
        kept, self._cache = self._cache, None
        try:
            yield
        finally:
            self._cache = kept

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self._cache is not None:  # before the state of training, which makes a checkpoint whole
            folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            save_memory(self._cache, folder / _STATE)
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        save_trained(self.model, output_dir or str(self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        target: Any = self.model if model is None else model
        restore_trained(target, resume_from_checkpoint)
        state = Path(resume_from_checkpoint) / _STATE
        if state.exists():
            self._cache = load_memory(_memory(target), state, target.device)

    def _load_best_model(self) -> None:
        restore_trained(self.model, str(self.state.best_model_checkpoint))


def _memory(model: Any) -> Any:
    return getattr(model, "memory", None)
