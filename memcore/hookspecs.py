"""The hooks a plugin can implement. One function and one sentence each; ``docs/plugins.md`` has a worked example.

A plugin is a module named by an entry point of the group ``memcore``, with functions of these names marked
``@memcore.hookimpl``. What is built in comes the same way. Tensors and records that a hook is given are its own copies.

An implementation names the arguments that it wants and leaves out the others. Of what is observed, ``namespace`` is one
sequence's memory in one layer; ``session`` the name of the session that it belongs to, None if it is of none;
``backend`` the backend's name; ``nbytes`` the bytes of the chunks' embeddings, keys and values as tensors; ``count``
the chunks that the namespace holds then; ``seconds`` how long the bank took, without waiting for its turn and without
hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs
import pluggy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from memcore.bank_hooks import Holdings
    from memcore.chunk import ChunkBatch, SearchResult
    from memcore.eviction import ChunkUsage

PROJECT = "memcore"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@attrs.frozen(kw_only=True)
class Component:
    """Something a plugin offers by name, imported only when it is used.

    Attributes:
        name: what a configuration calls it, e.g. ``"hnswlib"``.
        summary: one line for ``memcore plugins``.
        load: returns the class; may import heavy packages.
        requires: import names of optional packages it needs, checked before ``load``.
        install: what to install when one of them is missing, e.g. ``"memcore-llm[hnswlib]"``.
    """

    name: str
    summary: str
    load: Callable[[], type]
    requires: tuple[str, ...] = ()
    install: str = ""


@hookspec
def memcore_backends() -> Sequence[Component]:  # type: ignore[empty-body]
    """Offer memory backends: subclasses of :class:`memcore.MemoryBackend`."""


@hookspec
def memcore_embedders() -> Sequence[Component]:  # type: ignore[empty-body]
    """Offer chunk embedders: subclasses of :class:`memcore.ChunkEmbedder`."""


@hookspec
def memcore_eviction_policies() -> Sequence[Component]:  # type: ignore[empty-body]
    """Offer eviction policies: subclasses of :class:`memcore.EvictionPolicy`."""


@hookspec
def memcore_adapters() -> Sequence[Component]:  # type: ignore[empty-body]
    """Offer adapters, one per ``config.model_type``: subclasses of :class:`memcore.ModelAdapter`."""


@hookspec
def memcore_opened(backend: str, holdings: Callable[[], Holdings | None]) -> None:
    """Observe a memory that was opened, and ask what it holds whenever you like, until it is closed."""


@hookspec
def memcore_stored(
    namespace: str,
    session: str | None,
    backend: str,
    ids: Tensor,
    chunks: ChunkBatch,
    nbytes: int,
    count: int,
    seconds: float,
) -> None:
    """Observe chunks that were stored."""


@hookspec
def memcore_retrieved(
    namespace: str,
    session: str | None,
    backend: str,
    ids: Tensor,
    result: SearchResult | None,
    nbytes: int,
    count: int,
    seconds: float,
) -> None:
    """Observe a retrieval: the ids that will be attended to, and what the search found; None if all were taken."""


@hookspec(firstresult=True)
def memcore_evict(namespace: str, session: str | None, backend: str, usage: ChunkUsage, capacity: int) -> Tensor | None:
    """Decide what to drop from a namespace that is over capacity, or return None to leave it to the policy."""


@hookspec
def memcore_evicted(namespace: str, session: str | None, backend: str, ids: Tensor, count: int, seconds: float) -> None:
    """Observe chunks that were dropped to make room."""
