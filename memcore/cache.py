"""The transformers cache of a model with memory: a local window in front of the memory bank."""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from memcore.errors import UnsupportedCacheError, UnsupportedInputError, UnsupportedModelError
from memcore.memory_layer import MemoryLayer, Recalled, check_keys_and_values
from memcore.shelves import TEMPORARY
from memcore.window import Columns, LocalWindow

if TYPE_CHECKING:
    from memcore.memory import Memory

_numbers = itertools.count()


class MemoryCache(DynamicCache):
    """Keys and values of one ``generate()`` or of a chain of forwards: window, sinks and the names of its memory.

    Layers with global attention are :class:`MemoryLayer`; sliding layers stay what transformers makes them. Made by
    ``model.memory.new_cache()``, or out of the empty cache that ``generate()`` brings. What it stored in the bank is
    dropped when the cache is garbage-collected.
    """

    memory: Memory
    window: LocalWindow | None
    row_names: list[str]

    def __init__(self, memory: Memory, row_names: Sequence[str] = ()) -> None:
        """Make an empty cache.

        Args:
            memory: of the model that it is for.
            row_names: names of the rows' memories in the bank, which then stay when the cache goes; by default rows
                have names of their own.
        """
        super().__init__(config=memory.text_config)
        self._remember(memory)
        self.row_names = list(row_names)

    @classmethod
    def adopt(cls, cache: object, memory: Memory) -> MemoryCache:
        """Return the caller's cache as one with memory: as it is, or turned in place if it is still empty.

        Raises:
            UnsupportedCacheError: it holds something already, or is of a kind that memory cannot live in.
        """
        if isinstance(cache, MemoryCache):
            if cache.memory is not memory:
                raise UnsupportedCacheError(
                    "past_key_values belongs to another wrapped model; pass the one it returned"
                )
            if cache.window is not None and cache.window.under_way:
                raise UnsupportedCacheError(
                    "past_key_values was left half-filled by a forward that did not finish; start again with a new one"
                )
            return cache
        advice = "pass none, an empty DynamicCache, model.memory.new_cache(), or what this model returned before"
        if type(cache) is not DynamicCache or cache.offloading:
            kind = "an offloaded cache" if isinstance(cache, DynamicCache) else f"a {type(cache).__name__}"
            raise UnsupportedCacheError(f"past_key_values is {kind}, which memory cannot live in; {advice}")
        if cache.get_seq_length() > 0:
            raise UnsupportedCacheError(
                f"past_key_values already holds {cache.get_seq_length()} tokens that were fed without memory; {advice}"
            )
        cache.__class__ = cls
        adopted: MemoryCache = cache  # type: ignore[assignment]
        # Layers that generate() has prepared already (to record what it may take back, say) stay what they are.
        adopted.layers = adopted.layers or DynamicCache(config=memory.text_config).layers
        adopted.layer_class_to_replicate = None
        adopted._remember(memory)
        return adopted

    def _remember(self, memory: Memory) -> None:
        self.memory = memory
        self.window = None
        self.row_names = []
        self.recalled: dict[int, list[Recalled | None]] = {}
        for setup in memory.layer_setups:
            if setup.index < len(self.layers):  # a draft by the model's own first layers has a cache for them only
                self.layers[setup.index] = MemoryLayer(setup, self.recalled)
        self._owned: set[str] = set()  # shared with the finalizer, so it must be changed in place
        weakref.finalize(self, memory.bank.discard, self._owned)

    @property
    def memory_layers(self) -> list[MemoryLayer]:
        """The layers with global attention, in order."""
        return [layer for layer in self.layers if isinstance(layer, MemoryLayer)]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Take in a layer's new keys and values, and return what its attention should be given."""
        layer: Any = self.layers[layer_idx]
        if layer.is_initialized and layer.keys.device != key_states.device:
            _move(layer, key_states.device)  # restored from a state, while the layer is on a device of its own
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        return keys, values

    def begin(self, new: Columns, *, decode: bool) -> None:
        """Make room for a piece before it passes through the model: chunks that no longer fit go to the bank.

        Args:
            new: what the piece's columns are, ``[B, T]`` each.
            decode: whether it is a generated token: only every ``retrieve_every`` of these chooses chunks anew.
        """
        batch = int(new.live.shape[0])
        if self.window is None:
            self.window = LocalWindow(self.memory.config, batch)
            self.row_names = self.row_names or [self._new_row() for _ in range(batch)]
            if len(self.row_names) != batch:
                self.window = None
                raise UnsupportedCacheError(f"past_key_values is for {len(self.row_names)} sequences, got {batch}")
            setups = {setup.index: setup for setup in self.memory.layer_setups}
            for layer in self.memory_layers:
                layer.start(setups[layer.setup.index], self.window)
        elif self.window.batch != batch:
            raise UnsupportedCacheError(f"past_key_values holds {self.window.batch} sequences, the input has {batch}")
        self.window.under_way = True
        departure = self.window.make_room(new.live)
        if departure is not None:
            for layer in self.memory_layers:
                layer.spill(departure, self.row_names)
            self.window.take(departure)
        self.window.append(new, decode=decode, spilled=departure is not None and departure.spills)

    def finish(self) -> None:
        """Close the piece after every layer has seen it.

        Raises:
            UnsupportedModelError: a layer has not: its attention was called without this cache.
        """
        assert self.window is not None
        for layer in self.memory_layers if self.window.active else ():
            if layer.keys.shape[2] != len(self.window.columns):
                raise UnsupportedModelError(
                    f"attention of layer {layer.setup.index} ran without its memory: the model does not hand unknown "
                    "keyword arguments on to its attention function, so it needs an adapter that does"
                )
        self.window.finish()

    @property
    def seen(self) -> int:
        """Columns fed so far."""
        return 0 if self.window is None else self.window.seen

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the tokens (columns) fed so far, wherever they are now."""
        return int(super().get_seq_length(layer_idx))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Permute the rows, their memories included."""
        self._select_rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row, giving each copy a memory of its own."""
        if self.window is not None:
            self._select_rows(torch.arange(self.window.batch).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows only."""
        self._select_rows(indices)

    def _select_rows(self, index: Tensor) -> None:
        if self.window is None:
            return
        if index.dtype == torch.bool:
            index = index.nonzero().flatten()
        self._check_not_traced("beam search (num_beams) moves rows")
        parents = [int(i) for i in index.cpu()]
        for layer in self.layers:
            if isinstance(layer, DynamicLayer) and layer.get_seq_length() > 0:
                layer.batch_select_indices(index)
        self.window.select_rows(torch.tensor(parents, dtype=torch.int64))
        old, names = self.row_names, []
        for parent in parents:
            name = old[parent]
            if name in names:
                name = self._new_row()
                self._fork(old[parent], name)
            names.append(name)
        for name in old:
            if name not in names:
                self._forget(name)
        self.row_names = names

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last ``-tokens_to_remove`` tokens, as assisted generation does.

        Raises:
            UnsupportedInputError: they have left the window already.
        """
        if self.window is not None and tokens_to_remove < 0:
            self._check_not_traced("assisted generation takes tokens back")
            self.window.crop(-tokens_to_remove)
        super().crop(tokens_to_remove)

    def reset(self) -> None:
        """Empty the cache and its memory."""
        for name in self.row_names:
            self._forget(name)
        self.row_names, self.window = [], None
        self.recalled.clear()
        super().reset()  # type: ignore[no-untyped-call]

    def detach(self) -> None:
        """Make what is in the window data, through which no gradient passes; what is in memory is so always."""
        for layer in self.layers:
            if isinstance(layer, MemoryLayer):
                layer.detach()
            elif isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None:
                layer.keys, layer.values = layer.keys.detach(), layer.values.detach()

    def state(self) -> dict[str, Tensor]:
        """Return all that the cache holds beside the bank, between two pieces, for :meth:`from_state`: detached copies.

        Raises:
            UnsupportedCacheError: it is empty, or was left half-filled.
        """
        if self.window is None or self.window.under_way:
            raise UnsupportedCacheError("only a cache that holds tokens, between two forwards, has a state to keep")
        tensors = {f"window.{name}": tensor for name, tensor in self.window.state().items()}
        for index, layer in enumerate(self.layers):
            state = layer.state() if isinstance(layer, MemoryLayer) else _local_state(layer)
            tensors |= {f"layer{index}.{name}": tensor for name, tensor in state.items()}
        return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}

    @classmethod
    def from_state(
        cls, memory: Memory, state: Mapping[str, Tensor], row_names: Sequence[str], device: torch.device
    ) -> MemoryCache:
        """Return the cache that :meth:`state` described.

        Args:
            memory: a memory with the same layers and configuration.
            state: its tensors.
            row_names: names of the rows' memories in the bank; without any, rows get memories of their own, empty.
            device: where the tensors of the model's data go; each layer takes its own to where it computes.

        Raises:
            KeyError: something is missing from the state.
            ValueError: something in it is of another kind or shape.
        """
        cache = cls(memory, row_names)
        cache.window = LocalWindow.from_state(memory.config, _part(state, "window."))
        if row_names and len(row_names) != cache.window.batch:
            raise ValueError(f"the state is of {cache.window.batch} sequences, not of {len(row_names)}")
        cache.row_names = cache.row_names or [cache._new_row() for _ in range(cache.window.batch)]
        for index, layer in enumerate(cache.layers):
            own = {name: tensor.to(device) for name, tensor in _part(state, f"layer{index}.").items()}
            if isinstance(layer, MemoryLayer):
                layer.load_state(own, cache.window)
                continue
            _load_local_state(layer, own, cache.window.batch)
        return cache

    def __deepcopy__(self, memo: dict[int, Any]) -> MemoryCache:
        """Copy the cache; the copy's memory is its own, and shares storage until one of the two changes."""
        twin = MemoryCache(self.memory)
        memo[id(self)] = twin
        twin.window = copy.deepcopy(self.window, memo)
        twin.recalled.update((index, list(rows)) for index, rows in self.recalled.items())
        for index, layer in enumerate(self.layers):
            twin.layers[index] = (
                layer.copy_for(twin.window, twin.recalled)
                if isinstance(layer, MemoryLayer)
                else copy.deepcopy(layer, memo)
            )
        for name in self.row_names:
            twin.row_names.append(twin._new_row())
            twin._fork(name, twin.row_names[-1])
        return twin

    def _check_not_traced(self, problem: str) -> None:
        if self.memory.tracing is not None:
            raise UnsupportedInputError(f"{problem}, which a trace cannot follow; generate without, or without a trace")

    def _new_row(self) -> str:
        name = f"{TEMPORARY}row{next(_numbers)}"
        self._owned.update(layer.setup.namespace(name) for layer in self.memory_layers if layer.remembers)
        return name

    def _fork(self, source: str, target: str) -> None:
        for layer in self.memory_layers:
            if layer.remembers:
                self.memory.bank.fork(layer.setup.namespace(source), layer.setup.namespace(target))

    def _forget(self, name: str) -> None:
        for layer in self.memory_layers:
            if layer.remembers:
                self.memory.bank.drop(layer.setup.namespace(name))
                self._owned.discard(layer.setup.namespace(name))


def _local_state(layer: object) -> dict[str, Tensor]:
    """Return the state of a layer without memory, such as one with sliding attention."""
    if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None:
        raise UnsupportedCacheError(f"the state of a cache with a {type(layer).__name__} cannot be kept")
    state = {"keys": layer.keys, "values": layer.values}
    if isinstance(layer, DynamicSlidingWindowLayer):
        state["cumulative_length"] = torch.tensor(layer.cumulative_length)
    return state


def _load_local_state(layer: object, state: Mapping[str, Tensor], batch: int) -> None:
    assert isinstance(layer, DynamicLayer)
    check_keys_and_values(state["keys"], state["values"], batch)
    layer.lazy_initialization(state["keys"], state["values"])
    layer.keys, layer.values = state["keys"], state["values"]
    if isinstance(layer, DynamicSlidingWindowLayer):
        if state["cumulative_length"].dtype != torch.int64 or state["cumulative_length"].ndim:
            raise ValueError("the length of a layer's cache is no number")
        layer.cumulative_length = int(state["cumulative_length"])


def _move(layer: Any, device: torch.device) -> None:
    if isinstance(layer, MemoryLayer):
        layer.move(device)
    else:
        layer.keys, layer.values = layer.keys.to(device), layer.values.to(device)


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
