"""What all adapters for decoders in transformers share: finding the layers, installing memory, taking it out."""

from __future__ import annotations

import types
import warnings
from typing import Any, TypeVar

from transformers import PreTrainedModel

from memcore.adapter import ModelAdapter
from memcore.errors import AlreadyWrappedError, MemcoreWarning, NotWrappedError, UnsupportedModelError
from memcore.memory import Memory
from memcore.pretrained import CONFIG_FIELD
from memcore.rotary import RotaryGeometry
from memcore_adapters.attention_modules import attention_modules
from memcore_adapters.delegate import delegate_for
from memcore_adapters.forward import make_forward
from memcore_adapters.gates import attach_gates, detach_gates
from memcore_adapters.generated_length import lift_limits, restore_limits
from memcore_adapters.interface import register
from memcore_adapters.rope_types import check_rope_types, pin, trained_positions, unpin

M = TypeVar("M", bound=PreTrainedModel)


class DecoderAdapter(ModelAdapter):
    """Serves any decoder whose attention goes through the transformers registry and whose keys turn by halves.

    A family that differs overrides what differs: :meth:`is_global`, :meth:`geometry`, :meth:`check`,
    :meth:`check_call`. Names of layers and attention modules do not matter.
    """

    def decoder(self, model: Any) -> Any:
        """Return the module that maps token ids to last hidden states through all layers."""
        return model.get_decoder()

    def is_global(self, decoder: Any, layer_idx: int) -> bool:
        """Say whether a layer attends to everything before it."""
        kinds = getattr(decoder.config, "layer_types", None)
        if kinds is None:
            spans = (getattr(decoder.config, name, None) for name in ("sliding_window", "attention_chunk_size"))
            return all(span is None for span in spans)
        return bool(kinds[layer_idx] == "full_attention")

    def geometry(self, decoder: Any, layer_idx: int) -> RotaryGeometry | None:
        """Return how a layer rotates its keys; None if positions do not enter its attention.

        Raises:
            UnsupportedModelError: that cannot be told.
        """
        rotary = getattr(decoder, "rotary_emb", None)
        kinds = getattr(decoder.config, "layer_types", None)
        # With several kinds of layers, each may have frequencies of its own.
        prefix = f"{kinds[layer_idx]}_" if kinds and hasattr(rotary, f"{kinds[layer_idx]}_inv_freq") else ""
        if not hasattr(rotary, f"{prefix}inv_freq"):
            raise UnsupportedModelError(
                f"{type(decoder).__name__} has no rotary_emb with inv_freq, so how it marks positions is not known; an "
                "adapter of its own must say so in geometry()"
            )
        # Those of the model as it was made: a long text may have changed the others.
        inv_freq = getattr(rotary, f"{prefix}original_inv_freq", getattr(rotary, f"{prefix}inv_freq"))
        return RotaryGeometry(
            inv_freq=inv_freq.clone(), attention_scaling=getattr(rotary, f"{prefix}attention_scaling", 1.0)
        )

    def check(self, decoder: Any) -> None:
        """Refuse a model that this adapter cannot serve exactly.

        Raises:
            UnsupportedModelError: with the reason.
        """
        if getattr(decoder.config, "use_bidirectional_attention", False):
            raise UnsupportedModelError(
                f"this {type(decoder).__name__} attends in both directions (use_bidirectional_attention); "
                "memory is for causal models"
            )

    def check_call(self, decoder: Any, kwargs: dict[str, Any]) -> None:
        """Refuse a call that the model cannot serve, before anything is done for it.

        Args:
            decoder: the wrapped decoder.
            kwargs: the call's arguments, by name.

        Raises:
            UnsupportedInputError: with the reason.
        """

    def wrap(self, model: M) -> M:
        """Give the model a memory, in place, and return it; see :meth:`memcore.ModelAdapter.wrap`."""
        decoder = self.decoder(model)
        if hasattr(decoder, "_memcore_memory"):
            raise AlreadyWrappedError(
                f"{type(model).__name__} already has a memory; memcore.unwrap(model) takes it away"
            )
        globals_ = self._global_layers(decoder)
        _check_registry(decoder, globals_)
        self.check(decoder)
        implementation = decoder.config._attn_implementation
        delegate = delegate_for(decoder, implementation)
        holder = holder_of(model)
        geometries = {index: self.geometry(decoder, index) for index in globals_}
        config = self.config
        turns = any(geometry is not None for geometry in geometries.values())
        if turns:
            config = config.fitted(trained_positions(decoder))
            for note in check_rope_types(decoder, config):
                warnings.warn(note, MemcoreWarning, stacklevel=4)  # the caller of memcore.wrap
        tokenizer = getattr(holder.config, "_name_or_path", None) or None if self.tokenizer is None else self.tokenizer
        memory = Memory(config, decoder.config, geometries, tokenizer)
        try:
            if self.config.gate:
                attach_gates(decoder, [setup.index for setup in memory.layer_setups if setup.reads])
            holder.set_attn_implementation(register(delegate))
            pin(decoder)
        except BaseException:
            memory.close()  # or its backend would keep others out
            _release(decoder, holder, implementation)
            raise
        decoder._memcore_memory = memory
        decoder._memcore_inner = decoder.__dict__.get("forward")
        decoder._memcore_forward = make_forward(type(decoder), self.check_call, self.geometry)
        decoder.forward = types.MethodType(decoder._memcore_forward, decoder)
        decoder._memcore_implementation = implementation
        if turns and config.positions != "original":
            lift_limits(holder)
        holder.memory = memory
        holder._memcore_adapter = self
        holder._memcore_saved = getattr(holder.config, CONFIG_FIELD, None)
        setattr(holder.config, CONFIG_FIELD, self.config.to_dict())  # goes with the weights wherever they are saved
        return model

    def unwrap(self, model: M) -> M:
        """Take the memory away, in place; see :meth:`memcore.ModelAdapter.unwrap`."""
        decoder, holder = self.decoder(model), holder_of(model)
        if not hasattr(decoder, "_memcore_memory"):
            raise NotWrappedError(f"{type(model).__name__} has no memory to take away")
        if getattr(decoder.forward, "__func__", None) is not decoder._memcore_forward:
            raise UnsupportedModelError(
                f"the forward of {type(decoder).__name__} was replaced after memcore.wrap(), so the memory behind it "
                "cannot be taken away; undo that first (accelerate: remove_hook_from_module(model, recurse=True))"
            )
        decoder._memcore_memory.close()  # the first step, for it may fail
        if decoder._memcore_inner is None:
            del decoder.forward
        else:
            decoder.forward = decoder._memcore_inner
        _release(decoder, holder, decoder._memcore_implementation)
        restore_limits(holder)
        if holder._memcore_saved is None:
            delattr(holder.config, CONFIG_FIELD)
        else:
            setattr(holder.config, CONFIG_FIELD, holder._memcore_saved)
        for name in ("memory", "inner", "forward", "implementation"):
            delattr(decoder, f"_memcore_{name}")
        for name in ("memory", "_memcore_adapter", "_memcore_saved"):
            delattr(holder, name)
        return model

    def _global_layers(self, decoder: Any) -> list[int]:
        found = [index for index in range(decoder.config.num_hidden_layers) if self.is_global(decoder, index)]
        if found:
            return found
        span = getattr(decoder.config, "sliding_window", None)
        cure = (
            f"every layer sees the last {span} tokens only (sliding_window). If the model works without that, load it "
            "with sliding_window=None"
            if span is not None
            else "no layer sees all that came before"
        )
        raise UnsupportedModelError(f"{type(decoder).__name__} has no layer with global attention to remember: {cure}")


def _release(decoder: Any, holder: Any, implementation: str) -> None:
    """Have a model attend as it did before."""
    unpin(decoder)
    detach_gates(decoder)
    holder.set_attn_implementation(implementation)


def holder_of(model: Any) -> Any:
    """Return the model that has the memory as an attribute: of one that another library has wrapped, the inside.

    Such wrappers (peft's, say) hand attributes on, and come and go.
    """
    return next((each for each in model.modules() if isinstance(each, PreTrainedModel)), model)


def _check_registry(decoder: Any, layers: list[int]) -> None:
    """Refuse a model whose attention would never call what memcore registers."""
    using = attention_modules(decoder)
    missing = [index for index in layers if index not in using]
    if missing or not getattr(decoder, "_can_set_attn_implementation", bool)():
        raise UnsupportedModelError(
            f"attention of {type(decoder).__name__} bypasses the transformers attention registry "
            f"(layers {missing or layers}), so memory cannot be put in front of it"
        )
