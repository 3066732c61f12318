"""The configuration of ``memcore train``: model, texts, memory, and what is trained how."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

import attrs

from memcore.config import MemoryConfig, read_file
from memcore.errors import ConfigError
from memcore.options import structure_options
from memcore.training.trainable import TrainingPlan

_PAPER_WARMUP = 1000


_positive = attrs.validators.ge(1)
_optionally_positive = attrs.validators.optional(attrs.validators.ge(1))


@attrs.frozen(kw_only=True)
class DataConfig:
    """How the texts are read. Lengths are in tokens.

    Attributes:
        rows: documents that are read side by side: the batch size.
        segment: tokens of each that are read at a step; memory goes on from one segment to the next.
        max_tokens: most tokens that are trained on, of the first documents; None for all.
        max_evaluation_tokens: most tokens that are evaluated on, of the first documents; None for all.
    """

    rows: int = attrs.field(default=1, validator=_positive)
    segment: int = attrs.field(default=1024, validator=attrs.validators.ge(2))
    max_tokens: int | None = attrs.field(default=None, validator=_optionally_positive)
    max_evaluation_tokens: int | None = attrs.field(default=None, validator=_optionally_positive)


@attrs.frozen(kw_only=True)
class StageConfig:
    """One stage of training: what trains, and how. The defaults are MemLong's, made smaller for short runs.

    Attributes:
        name: in folder names, the log and the picture; by default ``stage-1`` and so on.
        plan: which weights train.
        steps: of the optimizer; None to go by ``epochs``.
        epochs: how often all texts are read, if ``steps`` is not given.
        learning_rate: its highest value.
        warmup_steps: steps over which the rate rises to that; None for 1000, but at most a tenth of all steps.
        schedule: how the rate falls from there to 0 at the end, or does not.
        weight_decay: of the weights other than norms and biases.
        accumulation: segments whose gradients are added up for a step.
        max_grad_norm: gradients longer than this are cut to it.
        bf16: whether to compute in bfloat16, with the weights in their own precision.
        gradient_checkpointing: whether to compute layers again for the backward pass rather than keep what they gave.
        evaluate_every: steps between evaluations; None for one before the first step and one after the last.
        save_every: steps between checkpoints, from which an interrupted training goes on.
        log_every: steps between losses in the log.
    """

    name: str = ""
    plan: TrainingPlan = attrs.field(factory=TrainingPlan)
    steps: int | None = attrs.field(default=None, validator=_optionally_positive)
    epochs: int = attrs.field(default=1, validator=_positive)
    learning_rate: float = attrs.field(default=5e-5, validator=attrs.validators.gt(0))
    warmup_steps: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(0)))
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = attrs.field(default=1e-4, validator=attrs.validators.ge(0))
    accumulation: int = attrs.field(default=1, validator=_positive)
    max_grad_norm: float = attrs.field(default=1.0, validator=attrs.validators.gt(0))
    bf16: bool = False
    gradient_checkpointing: bool = False
    evaluate_every: int | None = attrs.field(default=None, validator=_optionally_positive)
    save_every: int = attrs.field(default=100, validator=_positive)
    log_every: int = attrs.field(default=10, validator=_positive)

    def total_steps(self, batches: int) -> int:
        """Return the steps that training takes if all texts are so many batches."""
        return self.steps or self.epochs * -(-batches // self.accumulation)

    def warmup(self, steps: int) -> int:
        """Return over how many of all steps the learning rate rises."""
        return min(_PAPER_WARMUP, steps // 10) if self.warmup_steps is None else self.warmup_steps


@attrs.frozen(kw_only=True)
class TrainingConfig:
    """All of a training.

    Attributes:
        model: hub id or folder of a decoder.
        documents: texts to train on, UTF-8: paths, or patterns such as ``texts/**/*.txt``.
        evaluation: texts to evaluate on, of the same kind, none of them trained on.
        output: folder for everything that is written; the trained weights stand right in it.
        memory: the memory that the model is trained with.
        data: how the texts are read.
        stages: one after the other, each going on from what the one before has trained.
        dtype: of the weights: a name of a torch dtype, or ``"auto"`` for the checkpoint's own.
        device: ``"auto"`` for a GPU if there is one, or ``"cpu"``.
        seed: of the order of documents, of LoRA and of dropout.
    """

    model: str = attrs.field(validator=attrs.validators.min_len(1))
    documents: tuple[str, ...] = attrs.field(validator=attrs.validators.min_len(1))
    output: Path
    evaluation: tuple[str, ...] = ()
    memory: MemoryConfig = attrs.field(factory=MemoryConfig)
    data: DataConfig = attrs.field(factory=DataConfig)
    stages: tuple[StageConfig, ...] = attrs.field(default=(StageConfig(),), validator=attrs.validators.min_len(1))
    dtype: str = "float32"
    device: Literal["auto", "cpu"] = "auto"
    seed: int = attrs.field(default=0, validator=attrs.validators.ge(0))

    def __attrs_post_init__(self) -> None:
        names = self.stage_names
        for name in names:
            if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith("."):
                raise ConfigError(f"the name of a stage has letters, digits, '-', '_' and '.', got {name!r}")
        if len(set(names)) < len(names):
            raise ConfigError(f"two stages have the same name: {', '.join(names)}")

    @property
    def stage_names(self) -> list[str]:
        """One name for each stage."""
        return [stage.name or f"stage-{number}" for number, stage in enumerate(self.stages, 1)]

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a configuration from a ``.toml``, ``.yaml``, ``.yml`` or ``.json`` file.

        Raises:
            ConfigError: a field is unknown, missing, or has a value that cannot be used.
        """
        return structure_options(cls, read_file(Path(path)), str(path))
