"""Where faiss runs: calls of its indexes with torch tensors, on the CPU here and on a GPU in ``gpu_engine``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final

import faiss
import torch

from memcore.products import full_precision

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


_FEW: Final = 1 << 23
"""Multiplications that a search of all lists does in the time that it takes to call a product for each list."""


class Engine(ABC):
    """Calls faiss. Its indexes have no type hints, so they are ``Any`` here.

    Attributes:
        most_found: the largest ``k`` and ``nprobe``.
    """

    most_found: int

    @abstractmethod
    def place(self, index: Any) -> Any:
        """Return an index made on the CPU as one that this engine searches."""

    @abstractmethod
    def copy(self, index: Any) -> Any:
        """Return a copy of an index that was placed."""

    @abstractmethod
    def train(self, index: Any, vectors: Tensor) -> None:
        """Train with ``[n, E]`` float32."""

    @abstractmethod
    def add(self, index: Any, vectors: Tensor, labels: Tensor | None = None) -> None:
        """Add ``[n, E]`` float32, under ``labels``, ``[n]`` int64, if the index takes any."""

    @abstractmethod
    def remove(self, index: Any, labels: Tensor) -> bool:
        """Remove vectors, ``[n]`` int64, from an inverted file; return False if that cannot be done."""

    @abstractmethod
    def search(self, index: Any, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return products and labels, ``[Q, count]`` on the CPU, of ``[Q, E]`` queries."""

    def best_products(self, index: Any, queries: Tensor, count: int) -> Tensor:
        """Return the largest products of ``[Q, E]`` queries with what an inverted file holds, as far as it knows them.

        Returns:
            ``[Q, count]`` on the CPU, best first; where it holds fewer, the lowest number.
        """
        index.nprobe = min(int(index.nlist), self.most_found)
        return self.search(index, queries, count)[0]


class CpuEngine(Engine):
    """Calls faiss on the CPU, through numpy arrays that share the tensors' memory.

    OpenMP keeps a thread count for everything that the calling thread runs with faiss, so it is set for each call and
    set back.

    Args:
        threads: for one call.
    """

    most_found = 2**31 - 1

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def place(self, index: Any) -> Any:
        """Return the index itself."""
        return index

    def copy(self, index: Any) -> Any:
        """Return a copy of an index."""
        return faiss.clone_index(index)

    def train(self, index: Any, vectors: Tensor) -> None:
        """Train an index."""
        self._call(index.train, vectors.cpu().numpy())

    def add(self, index: Any, vectors: Tensor, labels: Tensor | None = None) -> None:
        """Add vectors to an index."""
        if labels is None:
            self._call(index.add, vectors.cpu().numpy())
        else:
            self._call(index.add_with_ids, vectors.cpu().numpy(), labels.numpy())

    def remove(self, index: Any, labels: Tensor) -> bool:
        """Remove vectors from an inverted file."""
        self._call(index.remove_ids, labels.numpy())
        return True

    def search(self, index: Any, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Search an index."""
        products, labels = self._call(index.search, queries.cpu().numpy(), count)
        return torch.from_numpy(products), torch.from_numpy(labels)

    def best_products(self, index: Any, queries: Tensor, count: int) -> Tensor:
        """Return the largest products, of vectors that lie in lists as they are by a product with each list.

        A search of all lists, one query after the other, would read everything once for each query. Where there is
        little to read, it is faster all the same.
        """
        if not isinstance(index, faiss.IndexIVFFlat) or len(queries) * index.ntotal * index.d < _FEW:
            return super().best_products(index, queries, count)
        queries = queries.cpu()
        lists: Any = index.invlists
        products = [queries.new_full((len(queries), count), torch.finfo(queries.dtype).min)]
        with full_precision("cpu"):
            for number in range(index.nlist):
                if size := lists.list_size(number):
                    held = faiss.rev_swig_ptr(lists.get_codes(number), size * index.code_size)
                    products.append(queries @ torch.from_numpy(held).view(queries.dtype).view(size, index.d).T)
        return torch.cat(products, dim=1).topk(count, dim=1).values

    def compare(self, vectors: Tensor, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Compare the queries with every vector, ``[n, E]``. Returns products and places.

        On the CPU that is where the vectors lie; of vectors on a GPU all are copied.
        """
        products, places = self._call(
            faiss.knn, queries.cpu().numpy(), vectors.cpu().numpy(), count, faiss.METRIC_INNER_PRODUCT
        )
        return torch.from_numpy(products), torch.from_numpy(places)

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        before = faiss.omp_get_max_threads()
        if before == self._threads:
            return function(*args)
        faiss.omp_set_num_threads(self._threads)
        try:
            return function(*args)
        finally:
            faiss.omp_set_num_threads(before)
