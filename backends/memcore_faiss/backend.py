"""The ``faiss`` backend: faiss finds the chunks, memcore's own tables hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memcore.approximate_index import ApproximateIndex, VectorIndex
from memcore.errors import BackendError, ConfigError
from memcore.in_memory import InMemoryBackend, SearchIndex
from memcore_faiss import events
from memcore_faiss.engine import CpuEngine
from memcore_faiss.flat_index import FlatIndex
from memcore_faiss.footprint import footprint
from memcore_faiss.hnsw_index import HnswIndex
from memcore_faiss.installation import Installation, check_device, installation, resolve_device
from memcore_faiss.ivf_index import IvfIndex, IvfSettings
from memcore_faiss.options import FaissOptions
from memcore_faiss.positional_index import FlatGpuIndex

if TYPE_CHECKING:
    from memcore.chunk import ChunkBatch
    from memcore.footprint import Footprint
    from memcore_faiss.gpu_engine import GpuEngine


class FaissBackend(InMemoryBackend):
    """Keeps chunks in memory and finds them with faiss, on the CPU or on a GPU.

    Fetched chunks are on ``options.payload_device``; everything else comes back on the CPU. Scores are exact for the
    chunks found, and ``flat`` finds the very best ones.

    Args:
        options: :class:`FaissOptions`.

    Attributes:
        installation: the faiss in use.
        gpu: number of the GPU that is searched on, None on the CPU.

    Raises:
        ConfigError: ``device`` is no name of a device, or that of one on which the index is not searched.
        BackendError: faiss or torch cannot use the device, or this faiss has no such index.
    """

    Options = FaissOptions

    def __init__(self, options: object) -> None:
        own = options if isinstance(options, FaissOptions) else FaissOptions()
        super().__init__(options, own.payload_device, compression=own.compression, pin_memory=own.pin_memory)
        self.installation: Installation = installation()
        self._options = own
        self.gpu = choose_gpu(own, self.installation)
        self._cpu_engine = CpuEngine(own.threads)
        self._gpu_engine: GpuEngine | None = None
        if self.gpu is not None:
            from memcore_faiss.gpu_engine import GpuEngine

            self._gpu_engine = GpuEngine(self.gpu, own.temp_memory)
        events.OPENED.log(description=self.describe(), index=own.index, gpu=self.gpu)

    @classmethod
    def about(cls) -> str:
        """Return which faiss is installed and what it was built for."""
        return str(installation())

    @classmethod
    def footprint(cls, options: object, like: ChunkBatch, chunks: int, namespaces: int) -> Footprint:
        """Return what chunks take: see :meth:`memcore.backend.MemoryBackend.footprint`."""
        assert isinstance(options, FaissOptions)
        return footprint(options, like, chunks, namespaces)

    def describe(self) -> str:
        """Return which index is searched where, and by which faiss, in a line."""
        place = "the CPU" if self.gpu is None else f"GPU {self.gpu}"
        return f"faiss backend: index {self._options.index!r} on {place} ({self.installation})"

    def new_index(self) -> SearchIndex:
        """Return the index that the options say."""
        options = self._options
        if options.index == "flat" and self._gpu_engine is None:
            return FlatIndex(self._cpu_engine)
        return ApproximateIndex(self._new_vector_index(), exact_below=options.exact_below, seed=options.seed)

    def _new_vector_index(self) -> VectorIndex:
        options = self._options
        if options.index == "hnsw":
            return HnswIndex(
                self._cpu_engine,
                links=options.M,
                ef_construction=options.ef_construction,
                ef=options.ef,
                recall=options.recall,
                seed=options.seed,
            )
        if options.index in ("ivf", "ivfpq"):
            return IvfIndex(
                self._gpu_engine or self._cpu_engine,
                IvfSettings(
                    lists=options.nlist,
                    probes=options.nprobe,
                    recall=options.recall,
                    train_size=options.train_size,
                    compressed=options.index == "ivfpq",
                    code_bytes=options.pq_m,
                    seed=options.seed,
                ),
            )
        assert self._gpu_engine is not None
        if options.index == "flat":
            return FlatGpuIndex(self._gpu_engine)
        from memcore_faiss.cagra_index import CagraIndex

        return CagraIndex(self._gpu_engine)


def choose_gpu(options: FaissOptions, found: Installation) -> int | None:
    """Return the number of the GPU on which the options' index is to be searched, None for the CPU.

    Raises:
        ConfigError: the device is no name of one, or that of one on which the index is not searched.
        BackendError: faiss or torch cannot use the GPU, or this faiss has no such index.
    """
    if options.index == "hnsw":
        check_device(options.device)
        if options.device not in ("auto", "cpu"):
            raise ConfigError(
                f"index 'hnsw' is searched on the CPU only, got device {options.device!r}; "
                "on a GPU there are 'flat', 'ivf', 'ivfpq' and, with cuVS, 'cagra'"
            )
        return None
    gpu = resolve_device(options.device, found)
    if options.index == "cagra":
        if options.device == "cpu":
            raise ConfigError("index 'cagra' is searched on a GPU only, got device 'cpu'")
        if not found.has_cagra:
            raise BackendError(f"index 'cagra' needs a faiss built with cuVS (faiss-gpu-cuvs), and this is {found}")
        if gpu is None:
            raise BackendError(f"index 'cagra' is searched on a GPU only, and device {options.device!r} is the CPU")
    return gpu
