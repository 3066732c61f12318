"""Options of the ``lmdb`` backend."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import attrs
from attrs.validators import ge, in_, instance_of, optional

from memcore.compression import Compression
from memcore.options import whole

_PAGE = 4096


@attrs.frozen(kw_only=True)
class LmdbOptions:
    """Options of the ``lmdb`` backend.

    Attributes:
        path: the folder of the memory, made if there is none. A local file system: LMDB locks do not work on network
            file systems.
        read_only: only show what another instance, in this process or another, has flushed.
        map_size: bytes of address space to begin with, doubled whenever they are full. They cost neither memory nor
            disk space.
        max_map_size: bytes that the file may never grow beyond; None for any number. Where it is larger already, it
            does not grow.
        write_buffer: bytes of chunks and records held in memory before they are committed without a ``flush``.
        hold_vectors: bytes of embeddings held in memory, of namespaces that were searched and whose embeddings are no
            more than that, so that the next search is one product; not with ``verify="always"``. 0 for none.
        verify: when checksums are compared: ``"first"``, the first time this instance reads a chunk; ``"always"``,
            each time; ``"never"``, only by ``verify()``.
        lock_timeout: seconds to wait for another writer to close.
        sync: whether a commit waits until the disk has it. Without, a crash of the machine (not of the process) may
            lose commits and damage the file.
        compression: how keys and values of new namespaces are kept: bit for bit, or in one byte a number with the
            error that :mod:`memcore.compression` states. Existing namespaces stay as they are.
    """

    path: Path = attrs.field(validator=instance_of(Path))
    read_only: bool = attrs.field(default=False, validator=instance_of(bool))
    map_size: int = attrs.field(default=1 << 30, validator=whole(16 * _PAGE))
    max_map_size: int | None = attrs.field(default=None, validator=optional(whole(16 * _PAGE)))
    write_buffer: int = attrs.field(default=256 << 20, validator=whole(0))
    hold_vectors: int = attrs.field(default=64 << 20, validator=whole(0))
    verify: Literal["first", "always", "never"] = attrs.field(
        default="first", validator=in_(("first", "always", "never"))
    )
    lock_timeout: float = attrs.field(default=0.0, converter=float, validator=ge(0))
    sync: bool = attrs.field(default=True, validator=instance_of(bool))
    compression: Compression = attrs.field(default="none", validator=in_(get_args(Compression)))
