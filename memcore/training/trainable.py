"""Which weights of a model are trained: the upper layers, whole or by LoRA, norms and gates."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Final

import attrs
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from memcore.errors import ConfigError, MissingDependencyError, TrainingError
from memcore.gate import GATE

INSIDE_LORA: Final = ".base_layer"
"""What LoRA puts into the names of the weights that it is put on."""

ADAPTER: Final = "memcore_"
"""Beginning of the names of LoRA adapters; the number of the stage follows."""

_HISTORY: Final = "_memcore_training"


@attrs.frozen(kw_only=True)
class TrainingPlan:
    """Which weights train; all others are frozen, the embeddings and the output layer always.

    Attributes:
        first_layer: the first layer that trains. None for the one after ``memory_layer``, so that what is stored does
            not drift, or the very first if every layer remembers for itself.
        lora_rank: rank of the LoRA adapters on the attention of these layers; None to train the layers themselves.
        lora_alpha: their scale times their rank; None for the rank, a scale of 1.
        lora_dropout: part of their input that is left out while training.
        norms: whether the norms of these layers train, and those behind the last one.
        gate: whether the gates train, where there are any; that of the memory layer, too, for it does not change what
            the layer stores.
    """

    first_layer: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(0)))
    lora_rank: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
    lora_alpha: float | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.gt(0)))
    lora_dropout: float = attrs.field(default=0.05, validator=[attrs.validators.ge(0), attrs.validators.lt(1)])
    norms: bool = True
    gate: bool = True

    def __attrs_post_init__(self) -> None:
        if self.lora_alpha is not None and self.lora_rank is None:
            raise ConfigError("lora_alpha is of LoRA, which needs lora_rank; without it the layers themselves train")


@attrs.frozen(kw_only=True)
class TrainableShare:
    """How much of a model trains.

    Attributes:
        parts: numbers that train by kind: LoRA, layers, norms, gates.
        total: numbers in all, LoRA included.
    """

    parts: Mapping[str, int]
    total: int

    @property
    def trained(self) -> int:
        """Numbers that train."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{kind} {count:,}" for kind, count in self.parts.items())
        return f"{self.trained:,} of {self.total:,} parameters train ({self.trained / self.total:.2%}): {parts}"


@attrs.frozen(kw_only=True)
class History:
    """What was made trainable in a model, stage after stage.

    Attributes:
        plans: in their order.
        names: of all parameters that trained by any of them.
    """

    plans: tuple[TrainingPlan, ...] = ()
    names: frozenset[str] = frozenset()


def history(model: Any) -> History:
    """Return what :func:`make_trainable` has done to a model."""
    return getattr(model, _HISTORY, History())


def forget_history(model: Any) -> None:
    """Forget what :func:`make_trainable` has done to a model that is now as if nothing had been."""
    vars(model).pop(_HISTORY, None)


def make_trainable(model: Any, plan: TrainingPlan, *, seed: int = 0, rounded: bool = False) -> TrainableShare:
    """Freeze a model but for what a plan trains, in place.

    LoRA adapters are put into the model, which keeps its class and its memory. A second plan adds to what the first one
    has trained: its adapters stay, frozen.

    Args:
        model: a decoder; wrapped if its gates are to train, or ``first_layer`` to be told by its memory.
        plan: what trains.
        seed: of the adapters' weights.
        rounded: whether weights in half precision are taken all the same: for use, not for training.

    Returns:
        How much that is.

    Raises:
        TrainingError: nothing would train, or weights that cannot take small steps; the model is as it was.
        MissingDependencyError: LoRA needs a package that is not installed.
    """
    layers = _layers(model)
    memory_layer = getattr(getattr(getattr(model, "memory", None), "config", None), "memory_layer", None)
    first = plan.first_layer
    if first is None:
        first = 0 if memory_layer is None else memory_layer + 1
    kinds = _kinds(model, plan, layers, first, first if memory_layer is None else min(first, memory_layer))
    targets = [] if plan.lora_rank is None else sorted(_attention_weights(model, layers[first:]))
    if not kinds and not targets:
        raise TrainingError(
            f"nothing to train: first_layer is {first}, and the model's layers are 0 to {len(layers) - 1}"
        )
    parameters = dict(model.named_parameters())
    coarse = not rounded and sorted(
        {str(parameters[name].dtype) for name in kinds if parameters[name].dtype not in _FINE}
    )
    if coarse:
        raise TrainingError(
            f"weights that train are {', '.join(coarse)}, in which small steps are lost; load the model in float32 "
            "(and train with bf16=True, which computes in bfloat16), or train LoRA alone: norms=False, gate=False"
        )
    before = history(model)
    names = before.names
    if targets:
        adapter = f"{ADAPTER}{len(before.plans) + 1}"
        _inject(model, plan, targets, adapter, seed)
        parameters = dict(model.named_parameters())
        names = frozenset(name if name in parameters else _inside(name) for name in names)
        kinds |= {name: "LoRA" for name in parameters if f".{adapter}." in name}
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in kinds)
    setattr(model, _HISTORY, History(plans=(*before.plans, plan), names=names | kinds.keys()))
    parts = dict.fromkeys(("LoRA", "layers", "norms", "gates"), 0)
    for name, kind in kinds.items():
        parts[kind] += parameters[name].numel()
    return TrainableShare(
        parts={kind: count for kind, count in parts.items() if count},
        total=sum(parameter.numel() for parameter in parameters.values()),
    )


_FINE: Final = (torch.float32, torch.float64)


def _inside(name: str) -> str:
    module, _, weight = name.rpartition(".")
    return f"{module}{INSIDE_LORA}.{weight}"


def _layers(model: Any) -> list[str]:
    """Return the names of the decoder's layers, in order: where the attention modules are."""
    holders = set()
    for name, module in model.named_modules():
        if isinstance(getattr(module, "layer_idx", None), int) and type(module).__name__.endswith("Attention"):
            parts = name.split(".")
            numbered = max((place for place, part in enumerate(parts) if part.isdigit()), default=0)
            holders.add(".".join(parts[:numbered]))
    if len(holders) != 1:
        raise TrainingError(
            f"the layers of {type(model).__name__} are not known: attention modules with layer_idx are in "
            f"{sorted(holders) or 'no place'}, not in one"
        )
    (holder,) = holders
    return [f"{holder}.{index}" for index in range(len(model.get_submodule(holder)))]


def _kinds(model: Any, plan: TrainingPlan, layers: list[str], first: int, first_gate: int) -> dict[str, str]:
    """Return the parameters that train, LoRA aside, and what they are."""
    places = {name: index for index, name in enumerate(layers)}
    depth = layers[0].count(".") + 1
    kinds = {}
    for module_name, module in model.named_modules():
        layer = places.get(".".join(module_name.split(".")[:depth]))
        # What has no layer are the embeddings, their norm if they have one, the output layer and its norm.
        behind = layer is None and "embed" not in module_name and "Norm" in type(module).__name__
        upper = layer is not None and layer >= first
        for parameter_name, _ in module.named_parameters(recurse=False):
            name = f"{module_name}.{parameter_name}".lstrip(".")
            if parameter_name == GATE:
                if plan.gate and layer is not None and layer >= first_gate:
                    kinds[name] = "gates"
            elif "Norm" in type(module).__name__:
                if plan.norms and (upper or (behind and first < len(layers))):
                    kinds[name] = "norms"
            elif upper and plan.lora_rank is None and ".lora_" not in name:
                kinds[name] = "layers"
    return kinds


def _attention_weights(model: Any, layers: list[str]) -> Iterator[str]:
    """Yield the names of the linear modules in the attention of these layers."""
    for layer in layers:
        for name, module in model.get_submodule(layer).named_modules():
            if type(module).__name__.endswith("Attention") and hasattr(module, "layer_idx"):
                yield from (f"{layer}.{name}.{each}" for each in _linear(module))


def _linear(module: nn.Module) -> Iterator[str]:
    for name, child in module.named_children():
        # What has LoRA already has linear modules of its own inside.
        if isinstance(child, nn.Linear | Conv1D) or hasattr(child, "base_layer"):
            yield name
        else:
            yield from (f"{name}.{each}" for each in _linear(child))


def _inject(model: Any, plan: TrainingPlan, targets: list[str], adapter: str, seed: int) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer
    except ImportError as error:
        raise MissingDependencyError('LoRA needs peft: pip install "memcore-llm[train]"') from error
    assert plan.lora_rank is not None
    alpha: Any = plan.lora_rank if plan.lora_alpha is None else plan.lora_alpha
    config = LoraConfig(
        r=plan.lora_rank,
        lora_alpha=alpha,
        lora_dropout=plan.lora_dropout,
        target_modules=targets,
        fan_in_fan_out=isinstance(model.get_submodule(targets[0]), Conv1D),
    )
    active = {id(each): list(each.active_adapters) for each in model.modules() if isinstance(each, LoraLayer)}
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(seed)
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # of the stage before
        inject_adapter_in_model(config, model, adapter)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            # The ones before go on; peft would let them rest, where the new one is not, too.
            module.set_adapter(active.get(id(module), []) + [adapter] * (adapter in module.lora_A))
    for name, parameter in model.named_parameters():
        if f".{adapter}." in name and parameter.dtype not in _FINE:
            parameter.data = parameter.data.float()  # on half-precision weights as well
    model.train(model.training)  # new modules begin in training mode
