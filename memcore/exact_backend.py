"""The default backend: every vector compared, in memory. Exact, so the others are judged by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, get_args

import attrs
from attrs.validators import in_, instance_of, optional
from torch import Tensor

from memcore.chunk import ChunkBatch, SearchResult
from memcore.compression import Compression
from memcore.footprint import Footprint
from memcore.in_memory import InMemoryBackend, SearchIndex, table_footprint
from memcore.products import BestProducts

if TYPE_CHECKING:
    from memcore.chunk_table import ChunkTable


def exact_search(table: ChunkTable, queries: Tensor, top_k: int) -> SearchResult:
    """Score every vector of every chunk and return the best chunks for each query.

    Args:
        table: ``N`` chunks with ``V`` vectors each, at least one.
        queries: ``[Q, E]`` float32 on the table's device.
        top_k: from 1 to ``N``.

    Returns:
        Ids on the CPU and scores on the table's device, ``[Q, top_k]``.
    """
    vectors = table.embeddings
    best = BestProducts(queries, vectors.shape[0] * vectors.shape[1])(vectors).topk(top_k, dim=1)
    return SearchResult(ids=table.ids.take(best.indices.cpu()), scores=best.values)


class ExactIndex(SearchIndex):
    """No index at all: looks at every row."""

    def search(self, table: ChunkTable, queries: Tensor, top_k: int) -> SearchResult:
        """Search exactly: see :func:`exact_search`."""
        return exact_search(table, queries, top_k)

    def removed(self, ids: Tensor) -> None:
        """Do nothing."""

    def copy(self) -> Self:
        """Return itself, as it holds nothing."""
        return self


@attrs.frozen(kw_only=True)
class ExactOptions:
    """Options of the ``exact`` backend.

    Attributes:
        device: where chunks live and are searched, e.g. ``"cpu"`` or ``"cuda:0"``.
        compression: ``"none"`` keeps keys and values bit for bit; ``"int8"`` in one byte a number, with an error of
            at most half a step, see :mod:`memcore.compression`.
        pin_memory: whether fetched chunks are in page-locked memory, so that a copy of them to a GPU need not be
            waited for; None where CUDA is there and the chunks are on the CPU.
    """

    device: str = attrs.field(default="cpu", validator=instance_of(str))
    compression: Compression = attrs.field(default="none", validator=in_(get_args(Compression)))
    pin_memory: bool | None = attrs.field(default=None, validator=optional(instance_of(bool)))


class ExactBackend(InMemoryBackend):
    """Searches by comparing the query with every vector of a namespace: no index, nothing approximate.

    Fetched chunks are on ``options.device``; everything else comes back on the CPU. Equal scores come in no
    particular order.

    Args:
        options: :class:`ExactOptions`.
    """

    Options = ExactOptions

    def __init__(self, options: object) -> None:
        own = options if isinstance(options, ExactOptions) else ExactOptions()
        super().__init__(options, own.device, compression=own.compression, pin_memory=own.pin_memory)

    @classmethod
    def footprint(cls, options: object, like: ChunkBatch, chunks: int, namespaces: int) -> Footprint:
        """Return what chunks take: see :meth:`memcore.backend.MemoryBackend.footprint`."""
        assert isinstance(options, ExactOptions)
        return table_footprint(like, chunks, namespaces, device=options.device, compression=options.compression)

    def new_index(self) -> SearchIndex:
        """Return an :class:`ExactIndex`."""
        return ExactIndex()
