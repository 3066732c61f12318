"""Making LoRA a part of the weights that it is put on, so that a trained model is an ordinary one."""

from __future__ import annotations

from typing import Any

from memcore.errors import TrainingError
from memcore.training.trainable import ADAPTER, forget_history


def merge_lora(model: Any) -> None:
    """Add the adapters of all stages to the weights, in place, and take them out.

    The model is faster then, and ``save_pretrained`` writes it as any other, with its memory's configuration. In half
    precision the sums are rounded.

    Raises:
        TrainingError: there are adapters that memcore did not make; the model is as it was.
    """
    found = [(name, module) for name, module in model.named_modules() if hasattr(module, "base_layer")]
    foreign = {each for _, module in found for each in module.lora_A if not each.startswith(ADAPTER)}
    if foreign:
        raise TrainingError(f"the model has adapters that are not memcore's: {', '.join(sorted(foreign))}")
    for name, module in found:
        module.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module.get_base_layer())
    vars(model).pop("peft_config", None)
    forget_history(model)
