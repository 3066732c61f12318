"""faiss on a GPU. Imported only where one is used: faiss's torch support replaces methods of all its index classes.

None of this has been run on a GPU yet.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any

import faiss
import faiss.contrib.torch_utils  # lets indexes take and return torch tensors
import torch

from memcore_faiss.engine import Engine

if TYPE_CHECKING:
    from torch import Tensor

# Of the types that come with faiss, only a GPU wheel's know all of this.
_faiss: Any = faiss

_lock = Lock()
_resources: dict[int, Any] = {}
_temp_memory: dict[int, int] = {}


def shared_resources(device: int, temp_memory: int) -> Any:
    """Return this process's ``StandardGpuResources`` for a GPU, of which there is one for all indexes.

    Args:
        device: number of the GPU.
        temp_memory: bytes of GPU memory for intermediate results. The most that was asked for is kept.
    """
    with _lock:
        if device not in _resources:
            _resources[device] = _faiss.StandardGpuResources()
        if temp_memory > _temp_memory.get(device, -1):
            _resources[device].setTempMemory(temp_memory)
            _temp_memory[device] = temp_memory
        return _resources[device]


class GpuEngine(Engine):
    """Calls faiss on a GPU. Tensors may be on this GPU or on the CPU.

    Args:
        device: number of the GPU.
        temp_memory: as in :func:`shared_resources`.

    Attributes:
        device: the GPU, for torch.
    """

    most_found = 2048

    def __init__(self, device: int, temp_memory: int) -> None:
        self.device = torch.device("cuda", device)
        self._shared = shared_resources(device, temp_memory)

    def place(self, index: Any) -> Any:
        """Return the index on the GPU."""
        options = _faiss.GpuClonerOptions()
        # Tables of more than 48 bytes per vector do not fit otherwise, and these products are computed again anyway.
        options.useFloat16 = isinstance(index, _faiss.IndexIVFPQ)
        return _faiss.index_cpu_to_gpu(self._shared, self.device.index, index, options)

    def copy(self, index: Any) -> Any:
        """Return a copy of an index, by way of the CPU, as faiss knows no other."""
        return self.place(_faiss.index_gpu_to_cpu(index))

    def train(self, index: Any, vectors: Tensor) -> None:
        """Train an index."""
        index.train(vectors)

    def add(self, index: Any, vectors: Tensor, labels: Tensor | None = None) -> None:
        """Add vectors to an index."""
        if labels is None:
            index.add(vectors)
        else:
            index.add_with_ids(vectors, labels.to(vectors.device))

    def remove(self, index: Any, labels: Tensor) -> bool:
        """Return False: faiss cannot remove anything on a GPU."""
        return False

    def search(self, index: Any, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Search an index."""
        products, labels = index.search(queries, count)
        return products.cpu(), labels.cpu()

    def cagra(self, vectors: Tensor) -> Any:
        """Return a CAGRA graph over ``[n, E]`` vectors, to which nothing can be added."""
        config = _faiss.GpuIndexCagraConfig()
        config.device = self.device.index
        graph = _faiss.GpuIndexCagra(self._shared, vectors.shape[1], _faiss.METRIC_INNER_PRODUCT, config)
        graph.train(vectors)
        return graph
