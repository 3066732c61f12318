"""Giving a model a memory and taking it away again."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from memcore.attention_shape import AttentionShape
from memcore.config import MemoryConfig
from memcore.errors import NotWrappedError, UnsupportedModelError
from memcore.plugins import registry
from memcore.pretrained import config_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

M = TypeVar("M", bound="PreTrainedModel")


class ModelAdapter(ABC):
    """Knows one family of models: where its layers are and how they handle positions.

    Plugins offer adapters by ``config.model_type`` (the component's name).
    """

    def __init__(self, config: MemoryConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Take the configuration that wrapped models get, and their tokenizer if an embedder needs it."""
        self.config = config
        self.tokenizer = tokenizer

    @abstractmethod
    def wrap(self, model: M) -> M:
        """Give the model a memory, in place, and return it.

        Raises:
            UnsupportedModelError: the model is not one that this adapter understands.
            AlreadyWrappedError: it has a memory.
        """

    @abstractmethod
    def unwrap(self, model: M) -> M:
        """Take the memory away, in place: the model computes what it did before ``wrap``.

        Raises:
            NotWrappedError: it has no memory.
        """

    def attention_shape(self, config: Any, layer_idx: int) -> AttentionShape:
        """Return what a layer attends with, by the decoder's transformers configuration; for ``memcore plan``.

        This one goes by the fields that most families have.
        """
        queries: int = config.num_attention_heads
        # A configuration may be given any field; it means something only where its class knows it.
        grouped = "num_key_value_heads" in inspect.signature(type(config)).parameters
        heads: int = (grouped and config.num_key_value_heads) or queries
        size: int = getattr(config, "head_dim", None) or config.hidden_size // queries
        return AttentionShape(queries=queries, heads=heads, key_size=size, value_size=size, cached=2 * heads * size)

    def longest_text(self, config: Any) -> int | None:
        """Return how many tokens a text may have, with or without memory; None for any number."""
        return None


class AutoAdapter:
    """Picks the adapter for a model by its ``config.model_type``."""

    def __init__(
        self,
        config: MemoryConfig | Mapping[str, object] | str | Path | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **overrides: Any,
    ) -> None:
        """Take a configuration, a mapping of its fields, a path of a file, or field names as keyword arguments.

        Without a configuration, a model that was saved with one gets that.
        """
        self.tokenizer = tokenizer
        self._config = None if config is None else MemoryConfig.from_value(config, **overrides)
        self._overrides = overrides

    def wrap(self, model: M) -> M:
        """Give the model a memory, in place, and return it; errors as in :meth:`ModelAdapter.wrap`."""
        return self.adapter_for(model).wrap(model)

    def unwrap(self, model: M) -> M:
        """Take the memory away; errors as in :meth:`ModelAdapter.unwrap`."""
        return unwrap(model)

    def adapter_for(self, model: object) -> ModelAdapter:
        """Return the adapter of a model's family.

        Raises:
            UnsupportedModelError: there is none.
        """
        known = sorted(registry().components("adapters"))
        supported = f"supported model types: {', '.join(known) or 'none (is memcore-llm installed?)'}"
        config = getattr(model, "config", None)
        model_type = getattr(config, "model_type", None)
        if model_type is None:
            raise UnsupportedModelError(
                f"expected a transformers model, got {type(model).__module__}.{type(model).__qualname__}; {supported}"
            )
        if getattr(config, "is_encoder_decoder", False):
            raise UnsupportedModelError(
                f"{type(model).__name__} ({model_type}) is an encoder-decoder; memory is for decoder-only models; "
                f"{supported}"
            )
        if model_type not in known:
            raise UnsupportedModelError(
                f"no adapter for {type(model).__name__} ({model_type}){_reason(model, known)}; {supported}"
            )
        memory_config = config_for(model, **self._overrides) if self._config is None else self._config
        return registry().load_component("adapters", model_type)(memory_config, self.tokenizer)


def _reason(model: Any, known: list[str]) -> str:
    text_type = getattr(model.config.get_text_config(decoder=True), "model_type", None)
    if text_type != model.config.model_type and text_type in known:
        return f", but there is one for its text model ({text_type}): load that on its own"
    if not getattr(model, "_can_set_attn_implementation", bool)():
        return (
            ": its attention bypasses the transformers attention registry, in front of which memory stands, so there "
            "can be none"
        )
    return ", and docs/add-a-family.md says how to add one"


def wrap(
    model: M,
    config: MemoryConfig | Mapping[str, object] | str | Path | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **overrides: Any,
) -> M:
    """Give a Hugging Face decoder model a long-term memory, in place, and return it.

    The model keeps its class, its weights and ``generate()``, and gains ``model.memory``.

    Args:
        model: a decoder-only model of a supported family.
        config: a :class:`~memcore.MemoryConfig`, a mapping of its fields, the path of a ``.toml``, ``.yaml`` or
            ``.json`` file, or None for the one that the model was saved with, or else the defaults.
        tokenizer: the model's, for an embedder that reads text; by default the one of the model's name or path.
        **overrides: fields that take precedence, e.g. ``window=2048``.

    Raises:
        ConfigError: the configuration cannot be used.
        UnsupportedModelError: no adapter knows the model.
        AlreadyWrappedError: it has a memory; ``unwrap`` it first.
        MissingDependencyError: a backend or an embedder needs a package that is not installed.
        PluginError: a plugin's backend, embedder or policy is none.
        BackendError: the backend cannot be opened, because another process writes there, for example.
    """
    return AutoAdapter(config, tokenizer=tokenizer, **overrides).wrap(model)


def unwrap(model: M) -> M:
    """Take a model's memory away, in place, and return it as it was before ``wrap``.

    What the memory held is dropped, and caches made with it can no longer be used.

    Raises:
        NotWrappedError: the model has no memory.
    """
    adapter = getattr(model, "_memcore_adapter", None)
    if not isinstance(adapter, ModelAdapter):
        raise NotWrappedError(f"{type(model).__name__} has no memory to take away")
    return adapter.unwrap(model)
