"""What all adapters for decoders in transformers share: finding the layers, installing memory, taking it out."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any, TypeVar

from memcore.adapter import ModelAdapter
from memcore.errors import AlreadyWrappedError, NotWrappedError, UnsupportedModelError
from memcore.memory import Memory
from memcore.rotary import RotaryGeometry
from memcore_adapters.delegate import delegate_for
from memcore_adapters.forward import make_forward
from memcore_adapters.interface import register

if TYPE_CHECKING:
    from transformers import PreTrainedModel

M = TypeVar("M", bound="PreTrainedModel")

_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


class DecoderAdapter(ModelAdapter):
    """Base of the families: decoders whose layers are ``decoder.layers`` with a ``self_attn`` in the registry.

    A family overrides what differs: :meth:`decoder`, :meth:`is_global`, :meth:`geometry`, :meth:`check`.
    """

    def decoder(self, model: Any) -> Any:
        """Return the module that maps token ids to last hidden states through all layers."""
        return model.get_decoder()

    def is_global(self, decoder: Any, layer_idx: int) -> bool:
        """Say whether a layer attends to everything before it."""
        kinds = getattr(decoder.config, "layer_types", None)
        return kinds is None or kinds[layer_idx] == "full_attention"

    def geometry(self, decoder: Any, layer_idx: int) -> RotaryGeometry | None:
        """Return how a layer rotates its keys."""
        rotary = decoder.rotary_emb
        return RotaryGeometry(inv_freq=rotary.inv_freq, attention_scaling=rotary.attention_scaling)

    def check(self, decoder: Any) -> None:
        """Refuse what this adapter cannot serve exactly.

        Raises:
            UnsupportedModelError: with the reason.
        """
        if not getattr(decoder, "_can_set_attn_implementation", bool)():
            raise UnsupportedModelError(f"{type(decoder).__name__} does not use the transformers attention registry")
        parameters = getattr(decoder.config, "rope_parameters", None) or {}
        kinds = [each for each in parameters.values() if isinstance(each, dict)] or [parameters]
        for each in kinds:
            kind = each.get("rope_type", "default")
            if kind not in _ROPE_TYPES:
                raise UnsupportedModelError(
                    f"rope_type {kind!r} changes its frequencies with the length of the input, so stored keys cannot "
                    f"be moved exactly; supported: {', '.join(_ROPE_TYPES)}"
                )

    def wrap(self, model: M) -> M:
        """Give the model a memory, in place, and return it; see :meth:`memcore.ModelAdapter.wrap`."""
        decoder = self.decoder(model)
        if hasattr(decoder, "_memcore_memory"):
            raise AlreadyWrappedError(
                f"{type(model).__name__} already has a memory; memcore.unwrap(model) takes it away"
            )
        self.check(decoder)
        implementation = decoder.config._attn_implementation
        delegate = delegate_for(decoder, implementation)
        globals_ = [index for index in range(len(decoder.layers)) if self.is_global(decoder, index)]
        if not globals_:
            raise UnsupportedModelError(f"{type(model).__name__} has no layer with global attention, none to remember")
        memory = Memory(self.config, decoder.config, {index: self.geometry(decoder, index) for index in globals_})
        name = register(delegate)
        model.set_attn_implementation(name)
        decoder._memcore_memory = memory
        decoder._memcore_inner = decoder.__dict__.get("forward")
        decoder.forward = types.MethodType(make_forward(type(decoder)), decoder)
        model.memory = memory  # type: ignore[assignment]
        model._memcore_adapter = self  # type: ignore[assignment]
        decoder._memcore_implementation = implementation
        return model

    def unwrap(self, model: M) -> M:
        """Take the memory away, in place; see :meth:`memcore.ModelAdapter.unwrap`."""
        decoder = self.decoder(model)
        if not hasattr(decoder, "_memcore_memory"):
            raise NotWrappedError(f"{type(model).__name__} has no memory to take away")
        decoder._memcore_memory.close()  # the first step, for it may fail
        if decoder._memcore_inner is None:
            del decoder.forward
        else:
            decoder.forward = decoder._memcore_inner
        model.set_attn_implementation(decoder._memcore_implementation)
        del decoder._memcore_memory, decoder._memcore_inner, decoder._memcore_implementation
        del model.memory, model._memcore_adapter
        return model
