"""StableLM: its layers keep unknown keywords from the attention, so the cache has to be handed over behind them."""

from __future__ import annotations

from typing import Any, TypeVar

from transformers import PreTrainedModel

from memcore.cache import MemoryCache
from memcore.cache_argument import NEW, OLD
from memcore_adapters.checkpointing import RECORD_ARGUMENT, LayerRecord
from memcore_adapters.decoder import DecoderAdapter
from memcore_adapters.interface import CACHE_ARGUMENT

M = TypeVar("M", bound=PreTrainedModel)


def _hand_over(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    cache = kwargs.get(NEW, kwargs.get(OLD))
    if isinstance(cache, LayerRecord):
        kwargs[RECORD_ARGUMENT], cache = cache, cache.cache
    if isinstance(cache, MemoryCache):
        kwargs[CACHE_ARGUMENT] = cache
    return args, kwargs


class StableLmAdapter(DecoderAdapter):
    """Adapter for ``model_type`` ``stablelm``."""

    def wrap(self, model: M) -> M:
        """Give the model a memory, and its attention modules the cache that belongs to it."""
        model = super().wrap(model)
        for layer in self.decoder(model).layers:
            attention = layer.self_attn
            attention._memcore_handle = attention.register_forward_pre_hook(_hand_over, with_kwargs=True)
        return model

    def unwrap(self, model: M) -> M:
        """Take the memory away."""
        model = super().unwrap(model)
        for layer in self.decoder(model).layers:
            layer.self_attn._memcore_handle.remove()
            del layer.self_attn._memcore_handle
        return model
