"""Phi-3: a cache that it would throw away when a text grows past what its short frequencies are for."""

from __future__ import annotations

import functools
import types
from typing import Any, Final, TypeVar

from transformers import GenerationMixin, PreTrainedModel

from memcore_adapters.decoder import DecoderAdapter, holder_of

M = TypeVar("M", bound=PreTrainedModel)

PREPARE: Final = "prepare_inputs_for_generation"
PREPARE_OF_BASE: Final = "base_model_prepare_inputs_for_generation"
"""Attribute in which a model of peft keeps the method of the model inside, as it was when peft wrapped it."""


class Phi3Adapter(DecoderAdapter):
    """Adapter for ``model_type`` ``phi3``."""

    def wrap(self, model: M) -> M:
        """Give the model a memory, and ``generate()`` no reason to read a long text again from its start."""
        wrapped: Any = super().wrap(model)
        holder = holder_of(wrapped)
        if isinstance(holder, GenerationMixin):
            prepare = types.MethodType(_prepare, holder)
            vars(holder)[PREPARE] = prepare
            for each in wrapped.modules():
                if PREPARE_OF_BASE in vars(each):
                    vars(each)[PREPARE_OF_BASE] = prepare
        return model

    def unwrap(self, model: M) -> M:
        """Take the memory away."""
        model = super().unwrap(model)
        vars(holder_of(model)).pop(PREPARE, None)
        return model


@functools.wraps(GenerationMixin.prepare_inputs_for_generation)  # generate() looks at the names of its arguments
def _prepare(model: Any, *args: Any, **kwargs: Any) -> Any:
    """Prepare a step of ``generate()``, while the model has a memory as other families do.

    Its own version drops the cache at that length, for its keys are of other frequencies from there on; with memory the
    frequencies stay. Without memory it does what it always did, for a model of peft may go on calling this one.
    """
    kind = GenerationMixin if hasattr(model, "memory") else type(model)
    return kind.prepare_inputs_for_generation(model, *args, **kwargs)
