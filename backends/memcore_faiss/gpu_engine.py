"""faiss on a GPU. Imported only where one is used: faiss's torch support replaces methods of all its index classes.

None of this has been run on a GPU yet.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any

import attrs
import faiss
import faiss.contrib.torch_utils  # lets indexes take and return torch tensors
import torch

from memcore_faiss.destruction import destroyed_within
from memcore_faiss.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

# Of the types that come with faiss, only a GPU wheel's know all of this.
_faiss: Any = faiss


@attrs.define(eq=False)
class Shared:
    """What all indexes on one GPU have in common.

    Attributes:
        resources: a ``StandardGpuResources``, which one thread at a time may use.
        temp_memory: bytes of GPU memory it takes for intermediate results.
        lock: held in every call, and while an index is destroyed, which gives memory back to the resources.
    """

    resources: Any
    temp_memory: int = -1
    lock: AbstractContextManager[bool] = attrs.field(factory=RLock)


_shared: dict[int, Shared] = {}
_lock = Lock()


def shared_on(device: int, temp_memory: int) -> Shared:
    """Return what this process shares on a GPU.

    Args:
        device: number of the GPU.
        temp_memory: bytes of GPU memory for intermediate results. The most that was asked for is kept.
    """
    with _lock:
        if device not in _shared:
            _shared[device] = Shared(_faiss.StandardGpuResources())
        shared = _shared[device]
    with shared.lock:
        if temp_memory > shared.temp_memory:
            shared.resources.setTempMemory(temp_memory)
            shared.temp_memory = temp_memory
    return shared


class GpuEngine(Engine):
    """Calls faiss on a GPU. Tensors may be on this GPU or on the CPU.

    Args:
        device: number of the GPU.
        temp_memory: as in :func:`shared_on`.

    Attributes:
        device: the GPU, for torch.
        shared: with all other indexes there.
    """

    most_found = 2048

    def __init__(self, device: int, temp_memory: int) -> None:
        self.device = torch.device("cuda", device)
        self.shared = shared_on(device, temp_memory)

    def place(self, index: Any) -> Any:
        """Return the index on the GPU."""
        options = _faiss.GpuClonerOptions()
        # Tables of more than 48 bytes per vector do not fit otherwise, and these products are computed again anyway.
        options.useFloat16 = isinstance(index, _faiss.IndexIVFPQ)
        with self._alone():
            return self._owned(_faiss.index_cpu_to_gpu(self.shared.resources, self.device.index, index, options))

    def copy(self, index: Any) -> Any:
        """Return a copy of an index, by way of the CPU, as faiss knows no other."""
        with self._alone():
            return self.place(_faiss.index_gpu_to_cpu(index))

    def train(self, index: Any, vectors: Tensor) -> None:
        """Train an index."""
        with self._alone():
            index.train(vectors)

    def add(self, index: Any, vectors: Tensor, labels: Tensor | None = None) -> None:
        """Add vectors to an index."""
        with self._alone():
            if labels is None:
                index.add(vectors)
            else:
                index.add_with_ids(vectors, labels.to(vectors.device))

    def remove(self, index: Any, labels: Tensor) -> bool:
        """Return False: faiss cannot remove anything on a GPU."""
        return False

    def search(self, index: Any, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Search an index."""
        with self._alone():
            products, labels = index.search(queries, count)
            return products.cpu(), labels.cpu()

    def cagra(self, vectors: Tensor) -> Any:
        """Return a CAGRA graph over ``[n, E]`` vectors, to which nothing can be added."""
        config = _faiss.GpuIndexCagraConfig()
        config.device = self.device.index
        with self._alone():
            graph = self._owned(
                _faiss.GpuIndexCagra(self.shared.resources, vectors.shape[1], _faiss.METRIC_INNER_PRODUCT, config)
            )
            graph.train(vectors)
        return graph

    def _owned(self, index: Any) -> Any:
        """Return an index on the GPU that is destroyed with other threads kept out."""
        return destroyed_within(self._alone, index)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other threads out, and have faiss work on torch's stream of this GPU."""
        with self.shared.lock, torch.cuda.device(self.device):
            yield
