"""The options of the ``hnswlib`` backend."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import attrs
from attrs.validators import in_, instance_of, optional

from memcore.compression import Compression
from memcore.options import whole


@attrs.frozen(kw_only=True)
class HnswlibOptions:
    """Options of the ``hnswlib`` backend.

    Attributes:
        M: links per vector in the graph, 2 to 128. More find better and cost memory and time to build.
        ef_construction: neighbours considered when a vector is added. More find better and cost time to build.
        ef: neighbours considered in a search, raised where a search asks for more. More find better, more slowly.
        seed: of the graph's random levels.
        threads: for adding and searching. Only with 1 is a graph the same from run to run.
        exact_below: a namespace with at most this many vectors is searched exactly, without a graph, which is faster
            for so few and needs nothing built; 0 always uses the graph.
        compression: ``"none"`` keeps keys and values bit for bit; ``"int8"`` in one byte a number, with an error of
            at most half a step, see :mod:`memcore.compression`.
        pin_memory: whether fetched chunks are in page-locked memory, so that a copy of them to a GPU need not be
            waited for; None where CUDA is there.
        path: a folder to load from on opening, if there is something, and to save to on closing; None keeps nothing.
    """

    M: int = attrs.field(default=16, validator=whole(2, 128))
    ef_construction: int = attrs.field(default=200, validator=whole(1, 100_000))
    ef: int = attrs.field(default=256, validator=whole(1, 100_000))
    seed: int = attrs.field(default=0, validator=whole(0, 2**31 - 1))
    threads: int = attrs.field(default=1, validator=whole(1, 1024))
    exact_below: int = attrs.field(default=4096, validator=whole(0, 2**31 - 1))
    compression: Compression = attrs.field(default="none", validator=in_(get_args(Compression)))
    pin_memory: bool | None = attrs.field(default=None, validator=optional(instance_of(bool)))
    path: Path | None = attrs.field(default=None, validator=optional(instance_of(Path)))
