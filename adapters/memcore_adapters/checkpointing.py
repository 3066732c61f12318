"""Gradient checkpointing of a long input: each layer computes every piece again in the backward pass.

By then the window has moved on and the bank holds other chunks. So the first run of a layer keeps what it was given of
the past, and a replay is given the same tensors again. They are part of the autograd graph, through which the gradient
goes on into the pieces before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from memcore.cache import MemoryCache
from memcore.cache_argument import NEW, OLD
from memcore.errors import UnsupportedInputError

RECORD_ARGUMENT = "memcore_record"
"""Keyword by which a checkpointed layer hands its record to the attention function."""

_CACHE_NAMES = (OLD, NEW, "layer_past")


class LayerRecord:
    """What one layer was given of the past for one piece. It stands in for the cache when the piece is replayed.

    Attributes:
        complete: whether the first run is over.
        cache: the cache, until then.
    """

    def __init__(self, cache: MemoryCache) -> None:
        """Start recording what this cache gives."""
        self.complete = False
        self.cache: MemoryCache | None = cache
        self._cached: tuple[Tensor, Tensor] | None = None
        self._joined: tuple[Tensor, Tensor, Tensor | None, Tensor | None] | None = None

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Do what the cache does (``Cache.update``), or did."""
        if self.cache is not None:
            all_keys, all_values = self.cache.update(keys, values, layer_idx, *args, **kwargs)
            self._cached = _before(all_keys, keys), _before(all_values, values)
            return all_keys, all_values
        assert self._cached is not None
        return _after(self._cached[0], keys), _after(self._cached[1], values)

    @property
    def has_memory(self) -> bool:
        """Whether memory joined something to the piece."""
        return self._joined is not None

    def joined(self, keys: Tensor, values: Tensor, mask: Tensor | None, retrieved: Tensor | None, new: int) -> None:
        """Keep the past that memory joined to ``new`` keys and values, the mask it made, and what was retrieved."""
        past = keys.shape[2] - new
        self._joined = keys[:, :, :past], values[:, :, :past], mask, retrieved

    def join(self, keys: Tensor, values: Tensor, mask: Any) -> tuple[Tensor, Tensor, Any, Tensor | None]:
        """Join the same past to keys and values computed again."""
        if self._joined is None:
            return keys, values, mask, None
        past_keys, past_values, mask, retrieved = self._joined
        return _after(past_keys, keys), _after(past_values, values), mask, retrieved

    def close(self) -> None:
        """End the first run. The cache is let go: backward must not keep a memory alive."""
        self.complete, self.cache = True, None

    def __getattr__(self, name: str) -> Any:
        # Only in the first run: a layer that asked more of its cache than update() could not be replayed.
        if name.startswith("_") or self.cache is None:
            raise AttributeError(name)
        return getattr(self.cache, name)


def _before(whole: Tensor, new: Tensor) -> Tensor:
    return whole[..., : whole.shape[-2] - new.shape[-2], :]


def _after(past: Tensor, new: Tensor) -> Tensor:
    return torch.cat((past, new), dim=-2)


class _Run:
    """A layer's forward on one piece, for ``checkpoint``: called once, and again for each backward pass."""

    def __init__(self, forward: functools.partial[Any], record: LayerRecord) -> None:
        self._record = record
        self._function = functools.partial(forward.func, *forward.args)
        swapped = {name: record for name in _CACHE_NAMES if name in forward.keywords}
        self._keywords: dict[str, Any] = {**forward.keywords, **swapped, RECORD_ARGUMENT: record}

    def __call__(self, *args: Any) -> Any:
        output = self._function(*args, **self._keywords)
        if not self._record.complete:
            self._record.close()
            # The one other way from the graph to the cache.
            self._keywords = {name: each for name, each in self._keywords.items() if not isinstance(each, MemoryCache)}
        return output


@contextmanager
def checkpointing(decoder: Any, cache: MemoryCache) -> Iterator[bool]:
    """Make the decoder's layers that checkpoint do so exactly, while in this context.

    The reentrant kind of checkpointing runs a layer without a graph, so that no gradient would reach the pieces
    before through their keys and values: the other kind is used in any case.

    Yields:
        What to pass as ``use_cache``, which transformers would contradict with a warning if it checkpoints.

    Raises:
        UnsupportedInputError: a checkpointing function other than torch's is set.
    """
    blocks: list[Any] = []
    if decoder.training:  # else looking for them would take its time with every token
        blocks = [each for each in decoder.modules() if isinstance(each, GradientCheckpointingLayer)]
    layers = [block for block in blocks if block.gradient_checkpointing]
    if not layers:
        yield True
        return
    functions = [layer._gradient_checkpointing_func for layer in layers]
    for function in functions:
        if not (isinstance(function, functools.partial) or function is checkpoint):
            raise UnsupportedInputError(
                f"gradient checkpointing by {function!r} cannot replay a text that is longer than the window; "
                "use model.gradient_checkpointing_enable(), or texts within the window"
            )
    for layer, function in zip(layers, functions, strict=True):
        layer._gradient_checkpointing_func = functools.partial(_checkpointed, function, cache)
        layer._can_checkpoint_with_cache = True  # or transformers would take it away, with a warning
    own = getattr(decoder, "gradient_checkpointing", False)
    decoder.gradient_checkpointing = False  # some decoders give their layers no cache where this is set
    try:
        yield False
    finally:
        decoder.gradient_checkpointing = own
        for layer, function in zip(layers, functions, strict=True):
            layer._gradient_checkpointing_func = function
            del layer._can_checkpoint_with_cache


def _checkpointed(function: Callable[..., Any], cache: MemoryCache, forward: functools.partial[Any], *args: Any) -> Any:
    record = LayerRecord(cache)
    args = tuple(record if each is cache else each for each in args)
    return function(_Run(forward, record), *args, use_reentrant=False)
