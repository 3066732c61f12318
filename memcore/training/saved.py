"""Trained weights on disk: nothing but them, and what is needed to put them back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from torch import Tensor

import memcore
from memcore.config import MemoryConfig
from memcore.errors import ConfigError, TrainingError
from memcore.files import parse_json, replacing
from memcore.gate import GATE
from memcore.options import structure_options, unstructure
from memcore.training.merging import merge_lora
from memcore.training.trainable import INSIDE_LORA, TrainingPlan, history, make_trainable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS: Final = "trained.safetensors"
DESCRIPTION: Final = "trained.json"

_FORMAT: Final = 1
_SAMPLE: Final = 16
"""Values looked at in each weight."""


@attrs.frozen(kw_only=True)
class Description:
    """What is said beside the weights.

    Attributes:
        format: of the files.
        memcore: the version that wrote them.
        model: name or path of the model that was trained.
        frozen: fingerprint of its weights that did not train.
        memory: the configuration of its memory; None for a model without.
        plans: what trained, stage after stage.
    """

    format: int
    memcore: str
    model: str
    frozen: str
    memory: MemoryConfig | None
    plans: tuple[TrainingPlan, ...]


def save_trained(model: Any, folder: str | Path) -> None:
    """Write the weights that were trained, and no others.

    That is what any plan of :func:`~memcore.training.trainable.make_trainable` trains, and whatever else is not frozen.

    Args:
        model: wrapped or not.
        folder: is made if need be.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = _trained(model)
    memory = getattr(model, "memory", None)
    description = Description(
        format=_FORMAT,
        memcore=memcore.__version__,
        model=str(getattr(model.config, "_name_or_path", "")),
        frozen=_fingerprint(model, set(weights)),
        memory=None if memory is None else memory.config,
        plans=history(model).plans,
    )
    with replacing(folder / WEIGHTS) as new:
        save_file({name: weight.detach().cpu().contiguous() for name, weight in weights.items()}, new)
    with replacing(folder / DESCRIPTION) as new:
        new.write_text(json.dumps(unstructure(description), indent=1) + "\n", encoding="utf-8")


def restore_trained(model: Any, folder: str | Path) -> None:
    """Put weights back into a model that was made trainable in the same way.

    Raises:
        TrainingError: they are of another model, or of other parts of it; the model is as it was.
    """
    folder = Path(folder)
    description, weights = _read(folder)
    _check_base(model, set(weights), description, folder)
    _put(model, weights, folder)


def load_trained(
    model: PreTrainedModel | str | Path,
    folder: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    merge: bool = False,
    **arguments: Any,
) -> PreTrainedModel:
    """Give a model the memory and the weights that it was trained with.

    Args:
        model: the one that was trained, as it was before, in place; or its name or folder. If it has a memory already,
            it keeps that.
        folder: where ``memcore train``, a :class:`~memcore.training.trainer.MemoryTrainer` or
            :func:`~memcore.training.saved.save_trained` wrote.
        tokenizer: as in :func:`memcore.wrap`.
        merge: whether LoRA becomes a part of the weights that it is put on. The model is an ordinary one then, which is
            faster, and which ``save_pretrained`` writes and :func:`memcore.from_pretrained` loads.
        **arguments: fields of :class:`~memcore.MemoryConfig` that take precedence over those saved; for a name, all
            others go to ``AutoModelForCausalLM.from_pretrained``, e.g. ``dtype="bfloat16"``.

    Returns:
        The model, in evaluation mode.

    Raises:
        TrainingError: there are no trained weights in the folder, they are of another model, or the model has been
            trained already.
        ConfigError: the memory's configuration cannot be used.
        MissingDependencyError: LoRA needs a package that is not installed.
    """
    from memcore.adapter import wrap

    folder = Path(folder)
    description, weights = _read(folder)
    fields = {field.name for field in attrs.fields(MemoryConfig)}
    overrides = {name: arguments.pop(name) for name in fields & arguments.keys()}
    found: Any = model
    if isinstance(model, str | Path):
        from transformers import AutoModelForCausalLM

        found = AutoModelForCausalLM.from_pretrained(model, **arguments)
    elif arguments:
        raise ConfigError(f"{', '.join(sorted(arguments))}: no fields of MemoryConfig, and the model is loaded already")
    if history(found).plans:
        raise TrainingError("the model has been trained already; load the one that it came from")
    _check_base(found, set(weights), description, folder)
    if description.memory is not None and not hasattr(found, "memory"):
        wrap(found, description.memory, tokenizer=tokenizer, **overrides)
    elif overrides:
        raise ConfigError(f"{', '.join(sorted(overrides))}: the model has a memory, which stays as it is")
    for plan in description.plans:
        make_trainable(found, plan, rounded=True)
    _put(found, weights, folder)
    if merge:
        merge_lora(found)
    return found.eval()  # type: ignore[no-any-return]


def _trained(model: Any) -> dict[str, Tensor]:
    names = history(model).names
    return {name: parameter for name, parameter in model.named_parameters() if name in names or parameter.requires_grad}


def _read(folder: Path) -> tuple[Description, dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        values = parse_json((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if isinstance(values, dict) and values.get("format") != _FORMAT:
            raise TrainingError(
                f"{folder / DESCRIPTION} has format {values.get('format')}, and this version of memcore reads {_FORMAT}"
            )
        description, weights = structure_options(Description, values), load_file(folder / WEIGHTS)
        _check_ranks(description, weights)
        return description, weights
    except FileNotFoundError as error:
        raise TrainingError(f"{folder} holds no trained weights, which are {WEIGHTS} and {DESCRIPTION}") from error
    except (OSError, SafetensorError, ValueError) as error:
        if isinstance(error, TrainingError):
            raise
        raise TrainingError(f"the trained weights in {folder} cannot be read: {error}") from error


def _check_ranks(description: Description, weights: dict[str, Tensor]) -> None:
    """Raise ConfigError if LoRA is said to be of a rank that no weight has room for: so much would be made for it."""
    most = max((size for weight in weights.values() for size in weight.shape), default=0)
    ranks = [plan.lora_rank for plan in description.plans if plan.lora_rank is not None]
    if max(ranks, default=0) > most:
        raise ConfigError(f"LoRA is said to be of rank {max(ranks)}, and no weight is larger than {most}")


def _put(model: Any, weights: dict[str, Tensor], folder: Path) -> None:
    parameters = dict(model.named_parameters())
    wanted = history(model).names or weights.keys()
    problems = [
        *(f"{name} is missing" for name in sorted(wanted - weights.keys())),
        *(f"the model has no {name}" for name in sorted(weights.keys() - parameters.keys())),
        *(
            f"{name} is {list(weights[name].shape)}, in the model {list(parameters[name].shape)}"
            for name in sorted(weights.keys() & parameters.keys())
            if weights[name].shape != parameters[name].shape
        ),
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise TrainingError(f"the weights in {folder} do not fit the model: {'; '.join(problems[:3])}{more}")
    with torch.no_grad():
        for name, weight in weights.items():
            parameters[name].copy_(weight)


def _check_base(model: Any, trained: set[str], description: Description, folder: Path) -> None:
    if _fingerprint(model, trained) != description.frozen:
        raise TrainingError(
            f"the weights in {folder} were trained on another model, {description.model or 'without a name'}: those "
            "that did not train differ from this one's"
        )


def _fingerprint(model: Any, trained: set[str]) -> str:
    """Return 16 hexadecimal digits of the weights that did not train: their names, shapes and a sample of values.

    They are the same with and without LoRA and memory, in float32 and in bfloat16.
    """
    digest = hashlib.sha256()
    apart = {name.replace(INSIDE_LORA, "") for name in trained}
    weights = {name.replace(INSIDE_LORA, ""): weight for name, weight in model.named_parameters()}
    with torch.no_grad():
        for name, weight in sorted(weights.items()):
            if name in apart or name.endswith(GATE):
                continue
            digest.update(f"{name} {list(weight.shape)}".encode())
            if weight.numel() and weight.device.type != "meta":
                places = torch.arange(_SAMPLE, device=weight.device) * (weight.numel() - 1) // (_SAMPLE - 1)
                values = weight.detach().flatten()[places].to(torch.bfloat16).float()
                digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
