"""Phi-3: a cache that it would throw away when a text grows past what its short frequencies are for."""

from __future__ import annotations

import types
from typing import Any, TypeVar

from transformers import GenerationMixin, PreTrainedModel

from memcore_adapters.decoder import DecoderAdapter

M = TypeVar("M", bound=PreTrainedModel)


class Phi3Adapter(DecoderAdapter):
    """Adapter for ``model_type`` ``phi3``."""

    def wrap(self, model: M) -> M:
        """Give the model a memory, and ``generate()`` no reason to read a long text again from its start."""
        wrapped: Any = super().wrap(model)
        if isinstance(wrapped, GenerationMixin):
            # Its own version drops the cache at that length, for its keys are of other frequencies from there on.
            # With memory the frequencies stay.
            prepare = types.MethodType(GenerationMixin.prepare_inputs_for_generation, wrapped)
            vars(wrapped)["prepare_inputs_for_generation"] = prepare
        return model

    def unwrap(self, model: M) -> M:
        """Take the memory away."""
        model = super().unwrap(model)
        vars(model).pop("prepare_inputs_for_generation", None)
        return model
