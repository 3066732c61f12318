"""The numbers of a model that a plan needs, from its configuration: no weights are read."""

from __future__ import annotations

import copy
import difflib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch

from memcore.adapter import AutoAdapter
from memcore.attention_shape import AttentionShape
from memcore.config import MemoryConfig
from memcore.errors import MemcoreWarning, UnsupportedModelError
from memcore.memory_layer import MemoryLayer
from memcore.model_source import check_dtype, check_source
from memcore.planning.architectures import ARCHITECTURES
from memcore.plugins import registry

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from memcore.embedder import ChunkEmbedder


@attrs.frozen(kw_only=True)
class LayerShape:
    """One layer of a model with a memory.

    Attributes:
        attention: its heads.
        span: tokens that it ever looks back, itself included; None for a layer that attends to everything.
        remembers: whether it stores its keys and values, and chooses chunks.
        reads: whether it attends to chunks.
    """

    attention: AttentionShape
    span: int | None
    remembers: bool
    reads: bool


@attrs.frozen(kw_only=True)
class ModelShape:
    """What a model with a memory is, in numbers.

    Attributes:
        model_type: its family.
        parameters: numbers of its weights, those that are shared once.
        weight_bytes: bytes of them, in ``dtype``.
        dtype: of weights, keys and values.
        hidden_size: numbers of a hidden state.
        intermediate_size: numbers inside of a layer's MLP.
        layers: all of them, in order.
        longest_text: tokens that a text may have; None for any number.
        config: the memory's configuration, window and ``top_k`` as the model wants them.
        embedder: what makes search vectors.
        notes: what ``memcore.wrap`` would warn of.
    """

    model_type: str
    parameters: int
    weight_bytes: int
    dtype: torch.dtype
    hidden_size: int
    intermediate_size: int
    layers: tuple[LayerShape, ...]
    longest_text: int | None
    config: MemoryConfig
    embedder: ChunkEmbedder = attrs.field(eq=False)
    notes: tuple[str, ...] = ()

    @property
    def remembering(self) -> tuple[LayerShape, ...]:
        """The layers that store and choose."""
        return tuple(layer for layer in self.layers if layer.remembers)

    @property
    def reading(self) -> tuple[LayerShape, ...]:
        """The layers that attend to chunks."""
        return tuple(layer for layer in self.layers if layer.reads)

    @property
    def full(self) -> tuple[LayerShape, ...]:
        """The layers that attend to everything, by themselves or with a memory."""
        return tuple(layer for layer in self.layers if layer.span is None)

    def with_weights(self, size: int) -> ModelShape:
        """Return the same with weights of so many bytes, for what is quantised."""
        return attrs.evolve(self, weight_bytes=size)

    def with_embedder(self, name: str) -> ModelShape:
        """Return the same with an embedder of this name, by its default options."""
        kind = registry().load_component("embedders", name)
        config = attrs.evolve(self.config, embedder=name, embedder_options={})
        return attrs.evolve(self, config=config, embedder=kind(kind.Options()))

    @property
    def sliding(self) -> tuple[LayerShape, ...]:
        """The others."""
        return tuple(layer for layer in self.layers if layer.span is not None)


def find_config(name: str) -> tuple[PreTrainedConfig, str]:
    """Return a model's transformers configuration, and where it is from.

    Args:
        name: a folder or a ``config.json``, a name in :data:`ARCHITECTURES`, or a hub id.

    Raises:
        UnsupportedModelError: there is no such model.
    """
    from transformers import AutoConfig

    if not Path(name).exists() and name.lower() in ARCHITECTURES:
        fields: dict[str, Any] = {"dtype": "bfloat16", **ARCHITECTURES[name.lower()]}
        return AutoConfig.for_model(**fields), "memcore's table of well-known shapes"
    if not Path(name).is_file():  # which may be a configuration
        check_source(name)
    try:
        config: Any = AutoConfig.from_pretrained(name)
    # OSError: no such folder or hub id, or no network. ValueError: a model type that transformers does not know.
    # KeyError, TypeError, AttributeError: a file that is no configuration.
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        first_line = str(error).strip().partition("\n")[0].rstrip(".:")
        like = difflib.get_close_matches(name.rpartition("/")[2].lower(), ARCHITECTURES, n=1)
        raise UnsupportedModelError(
            f"cannot read the configuration of {name!r}: {first_line}. Give a folder or a config.json, a hub id that "
            f"can be reached, or {f'{like[0]!r}, or another' if like else 'one'} of the names whose shapes are known: "
            f"{', '.join(ARCHITECTURES)}"
        ) from error
    return config, f"its config.json ({name})"


def model_shape(config: PreTrainedConfig, memory: MemoryConfig, *, dtype: str = "auto") -> ModelShape:
    """Return the numbers of a model with a memory, by giving one to a model without weights.

    So what can have no memory is refused as ``memcore.wrap`` refuses it, and what has one has it in the same layers.

    Args:
        config: the model's.
        memory: what its memory is made of; its backend is not opened.
        dtype: of weights, keys and values; ``"auto"`` for the configuration's own.

    Raises:
        UnsupportedModelError: the model can have no memory.
        ConfigError: the memory does not fit the model, or there is no such dtype.
    """
    model = _without_weights(copy.deepcopy(config), _dtype(dtype, config))  # wrapping writes to it
    planned = attrs.evolve(memory, backend="exact", backend_options={})
    adapter = AutoAdapter(planned).adapter_for(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wrapped: Any = adapter.wrap(model)
    own, text = wrapped.memory, wrapped.memory.text_config
    setups = {setup.index: setup for setup in own.layer_setups}
    layers = []
    for index, layer in enumerate(own.new_cache().layers):
        setup = setups.get(index)
        if (setup is None) == isinstance(layer, MemoryLayer):
            raise UnsupportedModelError(f"layer {index} of {type(model).__name__} has a cache of a kind unknown here")
        layers.append(
            LayerShape(
                attention=adapter.attention_shape(text, index),
                span=None if setup is not None else layer.sliding_window,
                remembers=setup is not None and setup.remembers,
                reads=setup is not None and setup.reads,
            )
        )
    parameters = list(wrapped.parameters())
    return ModelShape(
        model_type=text.model_type,
        parameters=sum(each.numel() for each in parameters),
        weight_bytes=sum(each.nbytes for each in parameters),
        dtype=model.dtype,
        hidden_size=text.hidden_size,
        intermediate_size=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        layers=tuple(layers),
        longest_text=adapter.longest_text(text),
        config=attrs.evolve(memory, window=own.config.window, top_k=own.config.top_k),
        embedder=own.layer_setups[0].embedder,
        notes=tuple(str(each.message) for each in caught if issubclass(each.category, MemcoreWarning)),
    )


def _dtype(name: str, config: Any) -> torch.dtype:
    check_dtype(name)
    if name == "auto":
        declared = getattr(config.get_text_config(decoder=True), "dtype", None)
        return declared if isinstance(declared, torch.dtype) else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _without_weights(config: PreTrainedConfig, dtype: torch.dtype) -> Any:
    """Return the model of a configuration, its parameters being of no content."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    # ValueError: no decoder of that kind. ImportError: it needs a package.
    except (ValueError, ImportError) as error:
        raise UnsupportedModelError(f"cannot make a decoder of this configuration: {error}") from error
    for parent, name, module in list(_frequencies(model)):
        # Which layers turn keys alike is seen by comparing numbers, and these are few.
        setattr(parent, name, type(module)(model.get_decoder().config))
    return model.eval()


def _frequencies(model: Any) -> Iterator[tuple[Any, str, Any]]:
    """Yield the modules that hold frequencies of rotations and nothing else, each after its parent and its name."""
    for parent in model.modules():
        for name, module in parent.named_children():
            if any(key.endswith("inv_freq") for key, _ in module.named_buffers(recurse=False)):
                yield parent, name, module
