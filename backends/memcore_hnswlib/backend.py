"""The ``hnswlib`` backend: a graph per namespace leads to the chunks, memcore's own tables hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memcore.approximate_index import ApproximateIndex
from memcore.errors import ConfigError
from memcore.in_memory import InMemoryBackend, SearchIndex, table_footprint
from memcore_hnswlib import snapshot
from memcore_hnswlib.graph import HnswlibVectors, graph_bytes
from memcore_hnswlib.options import HnswlibOptions

if TYPE_CHECKING:
    from pathlib import Path

    from memcore.chunk import ChunkBatch
    from memcore.footprint import Footprint


class HnswlibBackend(InMemoryBackend):
    """Keeps chunks in memory and finds them through a graph: approximate, and much faster than comparing with all.

    Everything comes back on the CPU. Scores are exact for the chunks found.

    With ``options.path`` it begins with what is saved there, graphs included, and ``close`` saves. In between nothing
    is written except by ``save``, so a crash loses what came since; a backend that must not is ``lmdb``. Two processes
    that use one folder overwrite each other's state.

    Args:
        options: :class:`HnswlibOptions`.

    Raises:
        BackendError: the folder cannot be read.
        ConfigError: what is there was saved with another compression.
        CorruptedError: what is there is damaged or something else.
    """

    Options = HnswlibOptions

    def __init__(self, options: object) -> None:
        own = options if isinstance(options, HnswlibOptions) else HnswlibOptions()
        super().__init__(options, compression=own.compression, pin_memory=own.pin_memory)
        self._options = own
        if own.path is not None:
            for name, (table, index) in snapshot.read(own.path, own).items():
                self.put_namespace(name, table, index)

    @classmethod
    def footprint(cls, options: object, like: ChunkBatch, chunks: int, namespaces: int) -> Footprint:
        """Return what chunks take: see :meth:`memcore.backend.MemoryBackend.footprint`."""
        assert isinstance(options, HnswlibOptions)
        _, vectors, size = like.embeddings.shape
        count = chunks * vectors
        index = graph_bytes(count, size, options.M) if count > options.exact_below else 0
        return table_footprint(like, chunks, namespaces, device="cpu", compression=options.compression, index=index)

    def new_index(self) -> SearchIndex:
        """Return an index on an empty graph."""
        options = self._options
        return ApproximateIndex(HnswlibVectors(options), exact_below=options.exact_below, seed=options.seed)

    def save(self, folder: Path | None = None) -> None:
        """Save everything, graphs included, in place of what is saved there: as a whole or not at all.

        Args:
            folder: where to; ``options.path`` if left out.

        Raises:
            BackendError: the folder cannot be written to.
            ConfigError: there is neither ``folder`` nor ``options.path``.
        """
        folder = folder or self._options.path
        if folder is None:
            raise ConfigError("save needs a folder, as the backend was opened without the option path")
        with self._lock:
            self._check_open()
            contents = {}
            for name, held in self._namespaces.items():
                assert isinstance(held.index, ApproximateIndex)
                contents[name] = (held.table, held.index)
            snapshot.write(folder, contents, self._options)

    def close(self) -> None:
        """Save, if there is a ``path``, and forget everything. Calling it again does nothing."""
        with self._lock:
            try:
                if self._options.path is not None and not self._closed:
                    self.save()
            finally:
                super().close()
