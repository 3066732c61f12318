"""What faiss's indexes take beside the table of chunks, told before there are any."""

from __future__ import annotations

import attrs

from memcore.chunk import ChunkBatch
from memcore.footprint import Footprint
from memcore.in_memory import table_footprint
from memcore_faiss.ivf_index import code_bytes_for, lists_for
from memcore_faiss.options import FaissOptions


def footprint(options: FaissOptions, like: ChunkBatch, chunks: int, namespaces: int) -> Footprint:
    """Return what chunks take: see :meth:`memcore.backend.MemoryBackend.footprint`.

    With ``device="auto"`` the index is taken to be in RAM.
    """
    _, vectors, size = like.embeddings.shape
    count = chunks * vectors
    on_gpu = options.device.startswith("cuda") and options.index != "hnsw"
    index = index_bytes(options, size, count, on_gpu=on_gpu) if count > options.exact_below else 0
    found = table_footprint(
        like, chunks, namespaces, device=options.payload_device, compression=options.compression, index=index
    )
    if on_gpu:
        moved = namespaces * index
        return attrs.evolve(found, ram=found.ram - moved, gpu=found.gpu + moved + options.temp_memory)
    return found


def index_bytes(options: FaissOptions, size: int, count: int, *, on_gpu: bool) -> int:
    """Return what the index of one namespace takes, in bytes.

    Args:
        options: the backend's.
        size: numbers of a vector.
        count: vectors.
        on_gpu: whether it is on a GPU.
    """
    whole = 4 * size
    if options.index == "flat":
        return count * whole if on_gpu else 0  # on the CPU it reads the table
    if options.index == "hnsw":
        return count * (whole + 8 * options.M)
    if options.index == "cagra":
        return count * (2 * whole + 256)
    code = whole if options.index == "ivf" else options.pq_m or code_bytes_for(size)
    return count * (code + 8) + lists_for(count, options.nlist) * whole
