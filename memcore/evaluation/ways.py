"""Ways of reading a long text, which every evaluation compares: with memory, without, and controls in between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from torch import Tensor

from memcore.adapter import unwrap, wrap
from memcore.config import MemoryConfig
from memcore.errors import EvaluationError
from memcore.gate import GATE
from memcore.options import structure_options
from memcore.plugins import registry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WAYS: Final = {
    "window": "the plain model, the last tokens only",
    "full": "full attention",
    "streaming": "the window and the first tokens (sinks), no memory",
    "random": "memory, chunks by chance",
    "memory": "memory",
}
"""Ways of reading a text. ``memory:NAME`` is memory with another backend, by its default options."""

PIECE: Final = 1024
"""Tokens that full attention reads at a time: the same result as at once, in less memory and on a CPU faster."""


def memory_for(way: str, config: MemoryConfig, *, known: Mapping[str, str] = WAYS) -> MemoryConfig | None:
    """Return the memory that a way of reading has, or None.

    Args:
        way: one of ``known``, or ``memory:BACKEND``.
        config: the memory's.
        known: ways there are, with what they are.

    Raises:
        EvaluationError: there is no such way.
    """
    name, _, backend = way.partition(":")
    if name not in known or (backend and name != "memory"):
        raise EvaluationError(f"no way of reading {way!r}; there are {', '.join(known)} and memory:BACKEND")
    if name == "streaming":
        return attrs.evolve(config, layers=(), memory_layer=None)
    if name == "random":
        return attrs.evolve(config, embedder="random", embedder_options={}, rerank=0)
    if name == "memory":
        other = backend not in ("", config.backend)
        return attrs.evolve(config, backend=backend, backend_options={}) if other else config
    return None


def check_ways(ways: Sequence[str], config: MemoryConfig, *, known: Mapping[str, str] = WAYS) -> None:
    """Find before hours of work what could not be done after them.

    Raises:
        EvaluationError: there is no such way, or one is given twice.
        ConfigError: there is no such backend, or its options are wrong.
        MissingDependencyError: it needs a package that is not installed.
    """
    for way in ways:
        memory = memory_for(way, config, known=known)
        if memory is not None:
            backend = registry().load_component("backends", memory.backend)
            structure_options(backend.Options, memory.backend_options, f"backend_options of {memory.backend!r}")
    if len(set(ways)) < len(ways):
        raise EvaluationError(f"every way of reading is to be given once; got {', '.join(ways)}")


@contextmanager
def read_as(
    model: Any, way: str, config: MemoryConfig, tokenizer: PreTrainedTokenizerBase | None = None
) -> Iterator[None]:
    """Give a model the memory of a way of reading, or none, while in this context.

    A model that is wrapped keeps what its gates have learnt, and has an empty memory of its own configuration again
    afterwards.

    Args:
        model: wrapped or not.
        way: see :data:`WAYS`.
        config: the memory's.
        tokenizer: the model's, for an embedder that reads text.
    """
    memory, own = memory_for(way, config), getattr(model, "memory", None)
    gates = {name: gate.detach().clone() for name, gate in model.named_parameters() if name.endswith(GATE)}
    if own is not None:
        unwrap(model)
    try:
        if memory is not None:
            _wrap(model, memory, tokenizer, gates)
        yield
    finally:
        if memory is not None and hasattr(model, "memory"):
            unwrap(model)
        if own is not None:
            _wrap(model, own.config, tokenizer, gates)


def _wrap(
    model: Any, config: MemoryConfig, tokenizer: PreTrainedTokenizerBase | None, gates: Mapping[str, Tensor]
) -> None:
    wrap(model, config, tokenizer=tokenizer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in gates:
                parameter.copy_(gates[name])


def seen(ids: Tensor, way: str, config: MemoryConfig) -> Tensor:
    """Return what a model is given of a text: all of it, or for ``"window"`` the first and the last tokens.

    The first token stays, as many models need it to begin with.

    Args:
        ids: ``[1, T]`` token ids.
        way: of reading.
        config: the memory's, whose window it is.

    Returns:
        ``[1, T]``, at most ``config.window_length`` tokens for ``"window"``.
    """
    if way != "window" or ids.shape[1] <= config.window_length:
        return ids
    return torch.cat([ids[:, :1], ids[:, ids.shape[1] - config.window_length + 1 :]], dim=1)
