"""What every backend refuses, so that all of them, a third party's too, refuse it in the same words."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from memcore.chunk import ChunkBatch
from memcore.errors import BackendError, ChunkShapeError, UnknownChunkError


def check_embeddings(chunks: ChunkBatch) -> None:
    """Raise BackendError if an embedding is NaN or infinite."""
    if not all_finite(chunks.embeddings):
        raise BackendError("embeddings must be finite, got NaN or infinity")


def check_queries(queries: Tensor, size: int | None) -> Tensor:
    """Return queries, detached.

    Args:
        queries: ``[Q, E]`` float32.
        size: ``E`` of the namespace; None if it holds nothing yet.

    Raises:
        ChunkShapeError: they are something else.
        BackendError: a query is NaN or infinite.
    """
    fits = queries.ndim == 2 and (size is None or queries.shape[1] == size)
    if not fits or queries.dtype != torch.float32:
        wanted = "E" if size is None else size
        raise ChunkShapeError(f"queries must be float32 [Q, {wanted}], got {queries.dtype} {list(queries.shape)}")
    if not all_finite(queries):
        raise BackendError("queries must be finite, got NaN or infinity")
    return queries.detach() if queries.requires_grad else queries


def check_ids(ids: Tensor) -> Tensor:
    """Return chunk ids on the CPU, contiguous, or raise ChunkShapeError unless they are ``[N]`` int64."""
    if ids.ndim != 1 or ids.dtype != torch.int64:
        raise ChunkShapeError(f"chunk ids must be int64 [N], got {ids.dtype} {list(ids.shape)}")
    return ids.cpu().contiguous()


def rows_of(ids: Tensor, held: Tensor, where: str = "") -> Tensor:
    """Return the place of each id among those held: ``[N]`` int64.

    Args:
        ids: ``[N]`` int64, repeats allowed.
        held: ``[M]`` int64 on the CPU, ascending.
        where: what holds them, to name it in the message.

    Raises:
        ChunkShapeError: ``ids`` is something else.
        UnknownChunkError: an id is not held; the message names it.
    """
    ids = check_ids(ids)
    wanted, there = ids.numpy(), held.numpy()  # numpy looks up a few in a quarter of the time that torch takes
    count = len(there)
    rows = there.searchsorted(wanted)
    if not (there.take(rows, mode="clip").tobytes() == wanted.tobytes() if count else not len(wanted)):
        missing = sorted(set(ids.tolist()) - set(held.tolist()))
        shown = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise UnknownChunkError(f"{where + ' has ' if where else ''}no chunk with id {shown} among the {count} stored")
    return torch.from_numpy(rows)


def all_finite(tensor: Tensor) -> bool:
    """Return whether no number is NaN or infinite."""
    # One pass, without a mask in memory. Only a sum that overflows needs the second look.
    return math.isfinite(tensor.sum().item()) or bool(torch.isfinite(tensor).all())
