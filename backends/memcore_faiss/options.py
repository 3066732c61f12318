"""Options of the ``faiss`` backend."""

from __future__ import annotations

from typing import Literal, get_args

import attrs
from attrs.validators import gt, in_, instance_of, lt, optional

from memcore.compression import Compression
from memcore.options import whole

IndexName = Literal["flat", "ivf", "ivfpq", "hnsw", "cagra"]


@attrs.frozen(kw_only=True)
class FaissOptions:
    """Options of the ``faiss`` backend.

    Attributes:
        index: ``"flat"`` compares with every vector; ``"ivf"`` has lists of vectors by nearest centroid and searches
            some; ``"ivfpq"`` has such lists of vectors compressed to a few bytes; ``"hnsw"`` is a graph, on the CPU
            only; ``"cagra"`` is a graph on a GPU only, for a faiss built with cuVS.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or ``"auto"``: a GPU if faiss and torch can use one and the index
            can be there, else the CPU.
        payload_device: where embeddings and payloads are kept, ``"cpu"`` or a device of torch. What the index takes on
            its own device comes on top.
        compression: ``"none"`` keeps keys and values bit for bit; ``"int8"`` in one byte a number, with an error of
            at most half a step, see :mod:`memcore.compression`.
        pin_memory: whether fetched chunks are in page-locked memory, so that a copy of them to a GPU need not be
            waited for; None where CUDA is there and the chunks are on the CPU.
        nlist: lists of ``ivf`` and ``ivfpq``; None makes twice as many as the square root of the number of vectors.
        nprobe: lists that a search looks at; None tries out on stored vectors and on the first queries how many it
            takes for ``recall``, and again whenever half of the vectors are others.
        recall: share of the best vectors for which ``nprobe`` and ``ef`` are tried out.
        train_size: vectors that the lists are trained with; None takes 50 per list.
        pq_m: bytes per vector of ``ivfpq``; must divide ``E``. None takes about one for every 4 numbers.
        M: links per vector of ``hnsw``, 2 to 128.
        ef_construction: neighbours considered by ``hnsw`` when a vector is added.
        ef: neighbours considered by ``hnsw`` in a search, raised where a search asks for more; None tries it out like
            ``nprobe``.
        seed: of clustering and graph levels.
        threads: that faiss may use on the CPU for one call.
        temp_memory: bytes of GPU memory for intermediate results, shared by all indexes on that GPU.
        exact_below: a namespace with at most this many vectors is searched exactly, without an index, which is faster
            for so few and needs nothing built; 0 always uses the index.
    """

    index: IndexName = attrs.field(default="ivf", validator=in_(get_args(IndexName)))
    device: str = attrs.field(default="auto", validator=instance_of(str))
    payload_device: str = attrs.field(default="cpu", validator=instance_of(str))
    compression: Compression = attrs.field(default="none", validator=in_(get_args(Compression)))
    pin_memory: bool | None = attrs.field(default=None, validator=optional(instance_of(bool)))
    nlist: int | None = attrs.field(default=None, validator=optional(whole(1, 2**20)))
    nprobe: int | None = attrs.field(default=None, validator=optional(whole(1, 2**20)))
    recall: float = attrs.field(default=0.98, validator=[instance_of(float), gt(0.0), lt(1.0)])
    train_size: int | None = attrs.field(default=None, validator=optional(whole(1, 2**31 - 1)))
    pq_m: int | None = attrs.field(default=None, validator=optional(whole(1, 2**16)))
    M: int = attrs.field(default=16, validator=whole(2, 128))
    ef_construction: int = attrs.field(default=200, validator=whole(1, 100_000))
    ef: int | None = attrs.field(default=None, validator=optional(whole(1, 100_000)))
    seed: int = attrs.field(default=0, validator=whole(0, 2**31 - 1))
    threads: int = attrs.field(default=1, validator=whole(1, 1024))
    temp_memory: int = attrs.field(default=256 << 20, validator=whole(0, 2**40))
    exact_below: int = attrs.field(default=4096, validator=whole(0, 2**31 - 1))
