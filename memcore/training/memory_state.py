"""A cache with all that it remembers, as one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from memcore.cache import MemoryCache
from memcore.chunk import ChunkBatch
from memcore.errors import TrainingError
from memcore.eviction import ChunkUsage
from memcore.files import replacing

if TYPE_CHECKING:
    from memcore.memory import Memory


def save_memory(cache: MemoryCache, path: Path) -> None:
    """Write what a cache holds, its chunks in the bank included.

    Args:
        cache: between two forwards.
        path: of the file, which is replaced in one go.
    """
    bank = cache.memory.bank
    tensors: dict[str, Tensor] = {f"cache.{name}": tensor for name, tensor in cache.state().items()}
    for row, name in enumerate(cache.row_names):
        for layer in cache.memory_layers:
            namespace = layer.setup.namespace(name)
            if layer.remembers and bank.count(namespace):
                usage = bank.usage(namespace)
                parts: dict[str, ChunkBatch | ChunkUsage] = {"chunks": bank.fetch(namespace, usage.ids), "usage": usage}
                tensors |= {
                    f"{row}.{layer.setup.index}.{part}.{field}": tensor
                    for part, held in parts.items()
                    for field, tensor in attrs.asdict(held, recurse=False).items()
                }
                tensors[f"{row}.{layer.setup.index}.next_id"] = torch.tensor(bank.next_id(namespace))
    with replacing(path) as new:
        save_file({name: each.cpu().contiguous() for name, each in tensors.items()}, new)


def load_memory(memory: Memory, path: Path, device: torch.device) -> MemoryCache:
    """Return the cache that was written, its chunks stored anew in the bank.

    Args:
        memory: of a model with the same layers and configuration.
        path: of the file.
        device: where the model is.

    Raises:
        TrainingError: it cannot be read, or is that of another model or configuration.
    """
    try:
        return _loaded(memory, load_file(path), device)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise TrainingError(f"the memory of a training in {path} cannot be read: {error!r}") from error


def _loaded(memory: Memory, tensors: dict[str, Tensor], device: torch.device) -> MemoryCache:
    cache = MemoryCache.from_state(
        memory,
        {name.removeprefix("cache."): tensor for name, tensor in tensors.items() if name.startswith("cache.")},
        (),
        device,
    )
    for row, name in enumerate(cache.row_names):
        for layer in cache.memory_layers:
            prefix = f"{row}.{layer.setup.index}."
            if f"{prefix}next_id" in tensors:
                chunks = ChunkBatch(**_fields(ChunkBatch, tensors, f"{prefix}chunks."))
                usage = ChunkUsage(**_fields(ChunkUsage, tensors, f"{prefix}usage."))
                namespace = layer.setup.namespace(name)
                memory.bank.restore(namespace, chunks, usage, int(tensors[f"{prefix}next_id"]))
    return cache


def _fields(cls: type, tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {field.name: tensors[f"{prefix}{field.name}"] for field in attrs.fields(cls)}
