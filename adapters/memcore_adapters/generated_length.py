"""Lengths in ``generate()``, which takes no text for longer than a model was trained for, with a memory or without."""

from __future__ import annotations

import types
from typing import Any, Final

from transformers import GenerationMixin, MaxLengthCriteria


def lift_limits(holder: Any) -> None:
    """Let ``generate()`` go beyond the positions a model was trained for: with a memory they are those of its window.

    transformers would otherwise end a text there if nobody says how many tokens are wanted, refuse one that is longer
    already, and warn of either.
    """
    if isinstance(holder, GenerationMixin):
        for name, method in _METHODS.items():
            if hasattr(type(holder), name):  # they are transformers' own, and another release may do without
                vars(holder)[name] = types.MethodType(method, holder)


def restore_limits(holder: Any) -> None:
    """Have ``generate()`` do what it always did."""
    for name in _METHODS:
        vars(holder).pop(name, None)


def _prepare_generated_length(
    model: Any, generation_config: Any, has_default_max_length: bool, *, input_ids_length: int, **others: Any
) -> Any:
    default = generation_config.max_length
    prepared = type(model)._prepare_generated_length(
        model, generation_config, has_default_max_length, input_ids_length=input_ids_length, **others
    )
    if has_default_max_length and prepared.max_new_tokens is None:
        prepared.max_length = default + input_ids_length
    return prepared


def _get_stopping_criteria(model: Any, *args: Any, **kwargs: Any) -> Any:
    criteria = type(model)._get_stopping_criteria(model, *args, **kwargs)
    for each in criteria:
        if isinstance(each, MaxLengthCriteria):
            each.max_position_embeddings = None  # only warns
    return criteria


_METHODS: Final = {each.__name__: each for each in (_prepare_generated_length, _get_stopping_criteria)}
