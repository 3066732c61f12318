"""One global-attention layer of the cache: window, sinks and retrieved chunks at hand, the rest in the bank."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import attrs
import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from memcore.attention import visibility
from memcore.chunk import ChunkBatch
from memcore.embedder import ChunkKeys
from memcore.errors import UnsupportedCacheError
from memcore.layer_setup import LayerSetup
from memcore.prefix import KeysValues, Prefix, lay_out
from memcore.recall import Retrieved
from memcore.retriever import Retriever
from memcore.rotary import unrotate
from memcore.window import Departure, LocalWindow, take_columns


@attrs.frozen(eq=False, kw_only=True)
class Recalled:
    """Chunks that a layer attends to for one row, in document order.

    Attributes:
        ids: ``[N]`` int64.
        starts: ``[N]`` int64 position of each chunk's first token.
        token_ids: ``[N, C]`` int64.
    """

    ids: Tensor
    starts: Tensor
    token_ids: Tensor


class MemoryLayer(DynamicLayer):
    """Keys and values of one layer.

    Until something leaves the window this is transformers' ``DynamicLayer``, call for call. From then on ``update``
    gives back only the new keys and values, and :meth:`attend` joins memory and window to them.

    Attributes:
        keys: ``[B, H, W, D]`` of the window's columns.
        values: ``[B, H, W, Dv]``.
        recalled: per layer index and row, what was retrieved last; the cache's layers share it.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, setup: LayerSetup, recalled: dict[int, list[Recalled | None]]) -> None:
        """Make an empty layer that notes in ``recalled`` what it retrieves."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.setup = setup
        self.recalled = recalled
        self.window: LocalWindow | None = None
        self._forget_everything()

    def _forget_everything(self) -> None:
        self._sinks: KeysValues | None = None
        self._prefix: Prefix | None = None
        self._given: KeysValues | None = None  # what the window's tokens are attended to by, if not `keys`
        self._retriever = Retriever(self.setup)

    def start(self, setup: LayerSetup, window: LocalWindow) -> None:
        """Take what the layer works with, before it is given anything."""
        self.setup = self._retriever.setup = setup
        self.window = window

    @property
    def remembers(self) -> bool:
        """Whether the layer stores chunks and chooses among them."""
        return self.setup.remembers

    @property
    def prefix_length(self) -> int:
        """Columns before the window: sinks and retrieved chunks, and padding of rows that have fewer."""
        return 0 if self._prefix is None else len(self._prefix)

    def memory_columns(self) -> Tensor:
        """Say which columns before the window are retrieved chunks: ``[B, prefix_length]`` bool, on the CPU."""
        window, prefix = self._running(), self.prefix_length
        rows = self.recalled.get(self.setup.index, [None] * window.batch)
        tokens = torch.tensor([0 if row is None else row.token_ids.numel() for row in rows])
        return torch.arange(prefix) >= prefix - tokens[:, None]

    def _running(self) -> LocalWindow:
        if self.window is None or not self.window.under_way:
            raise UnsupportedCacheError(
                "this cache belongs to a model wrapped by memcore and was used outside of it; "
                "wrap the model again, or start with an empty cache"
            )
        return self.window

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Take in new keys and values, and return what the model's attention should be given.

        Args:
            key_states: ``[B, H, T, D]`` rotated.
            value_states: ``[B, H, T, Dv]``.
            *args: ignored, as in transformers' own layers.
            **kwargs: ignored.
        """
        if not self._running().active:
            keys, values = super().update(key_states, value_states, *args, **kwargs)
            return keys, values
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Return the columns fed so far, those of a piece under way once this layer has seen it."""
        if self.window is None or not self.is_initialized:
            return 0
        if self.window.under_way and not self.window.active:
            return int(super().get_seq_length())
        return self.window.seen - (self.window.new if self.window.under_way else 0)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the length and offset of the keys that ``update`` gives back."""
        if self.window is not None and self.window.active:
            return query_length, self.get_seq_length()
        sizes: tuple[int, int] = super().get_mask_sizes(query_length)
        return sizes

    def spill(self, departure: Departure, row_names: list[str]) -> None:
        """Store the chunks that leave and set the sinks apart."""
        config = self.setup.config

        def room(x: Tensor) -> Tensor:
            return x.new_zeros(*x.shape[:2], config.sinks, x.shape[3])

        if self._given is not None:
            self.keys, self.values, self._given = self._given.keys, self._given.values, None
        if departure.order is not None:
            self.keys = take_columns(self.keys, departure.order)
            self.values = take_columns(self.values, departure.order)
        for row, leaving in enumerate(departure.rows):
            begin = leaving.start
            if leaving.sinks:
                end = begin + leaving.sinks
                if self._sinks is None:
                    self._sinks = KeysValues(self.keys, self.values).map(room)
                self._sinks.keys[row] = self.keys[row, :, begin:end].detach()
                self._sinks.values[row] = self.values[row, :, begin:end].detach()
                begin = end
            if leaving.chunks and self.remembers:
                self._store(
                    self.setup.namespace(row_names[row]), row, begin, begin + leaving.chunks * config.chunk_size
                )
        width = self.keys.shape[2]
        self.keys = self.keys[:, :, width - departure.keep :]
        self.values = self.values[:, :, width - departure.keep :]

    def _store(self, namespace: str, row: int, begin: int, end: int) -> None:
        window, size = self._running(), self.setup.config.chunk_size
        keys = self.keys[row, :, begin:end].detach()  # [H, n * C, D]
        values = self.values[row, :, begin:end].detach()
        # Under autocast a rotation may leave keys in float32 beside values in half precision.
        dtype = torch.promote_types(keys.dtype, values.dtype)
        keys, values = keys.to(dtype), values.to(dtype)
        positions = window.columns.positions[row, begin:end]
        plain = keys.float() if self.setup.geometry is None else unrotate(keys, positions, self.setup.geometry)

        def chunks(x: Tensor) -> Tensor:  # [H, n * C, D] to [n, H, C, D]
            blocks: Tensor = x.unflatten(1, (-1, size)).transpose(0, 1)
            return blocks

        token_ids = window.columns.token_ids[row, begin:end].view(-1, size)
        self.setup.bank.store(
            namespace,
            ChunkBatch(
                embeddings=self.setup.embedder.embed_chunks(ChunkKeys(keys=chunks(plain), token_ids=token_ids)),
                keys=chunks(keys),
                values=chunks(values),
                starts=positions[::size].clone(),
                lengths=torch.full((token_ids.shape[0],), size, dtype=torch.int64),
                token_ids=token_ids,
            ),
        )

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, row_names: list[str]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Join sinks, retrieved chunks and window to new keys and values, and keep the new ones.

        Args:
            query: ``[B, Hq, T, D]`` rotated.
            key: ``[B, H, T, D]`` as ``update`` returned them.
            value: ``[B, H, T, Dv]``.
            scaling: what the model multiplies logits with.
            row_names: names of the rows' memories.

        Returns:
            Keys and values ``[B, H, P + W + T, D]``, and which of them each token sees, as
            :func:`memcore.attention.visibility` says.
        """
        window = self._running()
        if query.shape[2] == 1:
            self.note(query)
        if window.retrieve_now:
            found = self._chosen(window, scaling, row_names)
            self._prefix = lay_out(self.setup, window, self._sinks, found, KeysValues(self.keys, self.values))
        if query.shape[2] > 1:
            self.note(query)
        blocks_k, blocks_v, prefix = [self.keys, key], [self.values, value], self.prefix_length
        if self._prefix is not None:
            blocks_k.insert(0, self._prefix.keys)
            blocks_v.insert(0, self._prefix.values)
        keys, values = torch.cat(blocks_k, dim=2), torch.cat(blocks_v, dim=2)
        mask = self._mask(window, prefix, key.shape[2], key.device)
        self.keys, self.values = keys[:, :, prefix:], values[:, :, prefix:]
        return keys, values, mask

    def _mask(self, window: LocalWindow, prefix: int, new: int, device: torch.device) -> Tensor | None:
        total = len(window.columns)
        past = total - new
        prefix_live = None if self._prefix is None else self._prefix.live
        if window.columns.all_live and prefix_live is None:
            if (prefix, device) not in window.masks:  # most layers of a piece need the same one
                mask = visibility(None, None, prefix + past, new)
                window.masks[prefix, device] = None if mask is None else mask.to(device)
            return window.masks[prefix, device]
        if prefix_live is None:
            prefix_live = torch.ones(window.batch, prefix, dtype=torch.bool)
        past_live = torch.cat((prefix_live, window.columns.live[:, :past]), dim=1)
        mask = visibility(past_live, window.columns.live[:, past:], prefix + past, new)
        return None if mask is None else mask.to(device)

    def watch(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Take note of an attention that needs no memory yet.

        A family with latent attention keeps less in its cache than it attends to, and makes keys and values of it every
        time. What is stored and moved is keys and values, so these are kept beside until tokens leave the window.

        Args:
            query: ``[B, Hq, T, D]`` rotated.
            key: ``[B, H, W, D]`` of the window and the new tokens.
            value: ``[B, H, W, Dv]``.
        """
        self.note(query)
        if key.shape != self.keys.shape or value.shape != self.values.shape:
            self._given = KeysValues(key, value)

    def note(self, query: Tensor) -> None:
        """Remember the latest queries (``[B, Hq, T, D]`` rotated), by which chunks will be chosen."""
        if self.remembers:
            self._retriever.note(query, self._running())

    def _chosen(self, window: LocalWindow, scaling: float, row_names: list[str]) -> list[Retrieved | None]:
        """Return what each row attends to, chosen here or by the memory layer."""
        config, index, found = self.setup.config, self.setup.index, window.found
        if self.remembers:
            heads = self.keys.shape[1]
            found = [
                self._retriever.retrieve(window, row, name, kv_heads=heads, scaling=scaling)
                for row, name in enumerate(row_names)
            ]
            if config.memory_layer is not None:
                window.found = found
        if not self.setup.reads:
            return [None] * window.batch
        self.recalled[index] = [
            None if each is None else Recalled(ids=each.ids, starts=each.chunks.starts, token_ids=each.chunks.token_ids)
            for each in found
        ]
        return found

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows ``indices``, in that order, repeats allowed."""
        super().batch_select_indices(indices.to(self.keys.device))
        self._sinks = self._sinks and self._sinks.rows(indices)
        self._prefix = None if self._prefix is None else self._prefix.rows(indices)
        self._given = self._given and self._given.rows(indices)
        self._retriever.select_rows(indices)
        if (recalled := self.recalled.get(self.setup.index)) is not None:
            self.recalled[self.setup.index] = [recalled[int(i)] for i in indices]

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last ``-tokens_to_remove`` columns; the cache has checked that they are in the window."""
        super().crop(tokens_to_remove)
        if self._given is not None:
            width = self.keys.shape[2]
            self._given = self._given.map(lambda x: x[:, :, :width])
        if self.window is not None:
            self._retriever.crop(self.window)

    def reset(self) -> None:
        """Empty the layer."""
        super().reset()
        self.window = None
        self._forget_everything()

    def state(self) -> dict[str, Tensor]:
        """Return all that a layer needs to go on between two pieces, for :meth:`load_state`."""
        tensors = {"keys": self.keys, "values": self.values, "recent": self._retriever.recent}
        for name, pair in (("sink", self._sinks), ("prefix", self._prefix), ("given", self._given)):
            if pair is not None:
                tensors |= {f"{name}_keys": pair.keys, f"{name}_values": pair.values}
        tensors["prefix_live"] = None if self._prefix is None else self._prefix.live
        for row, found in enumerate(self.recalled.get(self.setup.index, ())):
            if found is not None:
                tensors |= {f"recalled.{row}.{name}": value for name, value in attrs.asdict(found).items()}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def load_state(self, state: Mapping[str, Tensor], window: LocalWindow) -> None:
        """Become the layer that :meth:`state` described.

        Args:
            state: its tensors, those of the model's data on the layer's device.
            window: the cache's, restored.

        Raises:
            KeyError: something is missing from the state.
            ValueError: something in it is of another kind or shape.
        """

        def pair(name: str) -> KeysValues | None:
            if f"{name}_keys" not in state:
                return None
            keys, values = state[f"{name}_keys"], state[f"{name}_values"]
            check_keys_and_values(keys, values, window.batch)
            return KeysValues(keys, values)

        check_keys_and_values(
            state["keys"], state["values"], window.batch, len(window.columns) if window.active else None
        )
        self.lazy_initialization(state["keys"], state["values"])
        self.keys, self.values = state["keys"], state["values"]
        self.window = window
        self._sinks, prefix, self._given = pair("sink"), pair("prefix"), pair("given")
        live = state["prefix_live"].cpu() if "prefix_live" in state else None
        if prefix is not None and live is not None and live.shape != (window.batch, prefix.keys.shape[2]):
            raise ValueError(f"what was retrieved is {list(prefix.keys.shape)}, and of it {list(live.shape)} is live")
        self._prefix = None if prefix is None else Prefix(prefix.keys, prefix.values, live)
        self._retriever.recent = state.get("recent")
        rows: list[Recalled | None] = [
            Recalled(**{field: state[f"recalled.{row}.{field}"].cpu() for field in ("ids", "starts", "token_ids")})
            if f"recalled.{row}.ids" in state
            else None
            for row in range(window.batch)
        ]
        if any(rows):
            self.recalled[self.setup.index] = rows

    def move(self, device: torch.device) -> None:
        """Take everything to a device."""
        self.device = device
        self._change(lambda x: x.to(device))
        if self._retriever.recent is not None:
            self._retriever.recent = self._retriever.recent.to(device)

    def detach(self) -> None:
        """Make everything data, through which no gradient passes."""
        self._change(Tensor.detach)

    def _change(self, change: Callable[[Tensor], Tensor]) -> None:
        self.keys, self.values = change(self.keys), change(self.values)
        self._sinks = self._sinks and self._sinks.map(change)
        self._prefix = None if self._prefix is None else self._prefix.map(change)
        self._given = self._given and self._given.map(change)

    def copy_for(self, window: LocalWindow | None, recalled: dict[int, list[Recalled | None]]) -> MemoryLayer:
        """Return a copy for another cache; the two share no tensor that either changes in place."""
        twin = copy.copy(self)
        twin.window, twin.recalled, twin._retriever = window, recalled, copy.copy(self._retriever)
        twin._sinks = self._sinks and self._sinks.map(Tensor.clone)
        return twin


def check_keys_and_values(keys: Tensor, values: Tensor, batch: int, columns: int | None = None) -> None:
    """Raise ValueError unless keys and values that were read from somewhere are ``[B, H, W, D]``, in floating numbers.

    Args:
        keys: to look at.
        values: that belong to them.
        batch: ``B``.
        columns: ``W``; None for any.
    """
    for tensor in (keys, values):
        wide = tensor.shape[2] if tensor.ndim == 4 else -1
        if not tensor.is_floating_point() or wide < 0 or tensor.shape[0] != batch or columns not in (None, wide):
            raise ValueError(f"keys or values of {batch} rows are kept as {tensor.dtype} {list(tensor.shape)}")
    if keys.shape[2] != values.shape[2]:
        raise ValueError(f"keys {list(keys.shape)} and values {list(values.shape)} are not of as many tokens")
