"""Calls the hooks around store, retrieve and evict so that no plugin can harm the memory, or another plugin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import attrs
import pluggy
from torch import Tensor

from memcore import events
from memcore.eviction import problem_with_choice
from memcore.plugins import PluginRegistry, is_wrapper, registry
from memcore.session_store import session_of

if TYPE_CHECKING:
    from memcore.bank_hooks import Holdings
    from memcore.chunk import ChunkBatch, SearchResult
    from memcore.eviction import ChunkUsage


class PluginHooks:
    """Tells each plugin by itself what happens in a bank: the :class:`memcore.bank_hooks.Hooks` of installed plugins.

    A plugin that raises, or decides what cannot be done, is logged once per hook and passed over: what observes must
    not break what it observes. Each gets copies, and may write to them. Calls cost next to nothing while no plugin
    implements the hook.

    Args:
        plugins: whom to tell; None for all that are installed.
        backend: the name of the bank's backend, which plugins are told.
    """

    def __init__(self, plugins: PluginRegistry | None = None, *, backend: str = "") -> None:
        self._hook = (plugins or registry()).manager.hook
        self._backend = backend
        self._failed: set[tuple[str, str]] = set()

    def opened(self, holdings: Callable[[], Holdings | None]) -> None:
        """Tell plugins of a bank that was opened."""
        self._tell(self._hook.memcore_opened, holdings=holdings)

    def stored(self, namespace: str, ids: Tensor, chunks: ChunkBatch, *, count: int, seconds: float) -> None:
        """Tell plugins of chunks that were stored."""
        if self._hook.memcore_stored.get_hookimpls():
            self._tell(
                self._hook.memcore_stored,
                namespace=namespace,
                session=session_of(namespace),
                ids=ids,
                chunks=chunks,
                nbytes=_nbytes(chunks),
                count=count,
                seconds=seconds,
            )

    def retrieved(
        self,
        namespace: str,
        ids: Tensor,
        chunks: ChunkBatch,
        result: SearchResult | None,
        *,
        count: int,
        seconds: float,
    ) -> None:
        """Tell plugins of a retrieval."""
        if self._hook.memcore_retrieved.get_hookimpls():
            self._tell(
                self._hook.memcore_retrieved,
                namespace=namespace,
                session=session_of(namespace),
                ids=ids,
                result=result,
                nbytes=_nbytes(chunks),
                count=count,
                seconds=seconds,
            )

    def evict(self, namespace: str, usage: ChunkUsage, capacity: int) -> Tensor | None:
        """Return the ids that the first plugin with an opinion would drop, or None if none has one."""
        hook, session = self._hook.memcore_evict, session_of(namespace)
        told = {"namespace": namespace, "session": session, "backend": self._backend, "capacity": capacity}
        for plugin, choice in self._results(hook, **told, usage=usage):
            if choice is None:
                continue
            if not (problem := problem_with_choice(choice, usage, capacity)):
                assert isinstance(choice, Tensor)
                return choice
            if self._fails_first(plugin, hook.name):
                events.PLUGIN_OVERRULED.log(plugin=plugin, hook=hook.name, problem=problem)
        return None

    def evicted(self, namespace: str, ids: Tensor, *, count: int, seconds: float) -> None:
        """Tell plugins of chunks that were dropped to make room."""
        hook, session = self._hook.memcore_evicted, session_of(namespace)
        self._tell(hook, namespace=namespace, session=session, ids=ids, count=count, seconds=seconds)

    def _tell(self, hook: pluggy.HookCaller, **arguments: object) -> None:
        for _ in self._results(hook, backend=self._backend, **arguments):
            pass

    def _results(self, hook: pluggy.HookCaller, **arguments: object) -> Iterator[tuple[str, object]]:
        for implementation in reversed(hook.get_hookimpls()):
            if is_wrapper(implementation):
                continue
            try:
                result = implementation.function(*(_copied(arguments[name]) for name in implementation.argnames))
            except Exception:
                plugin = implementation.plugin_name
                if self._fails_first(plugin, hook.name):
                    events.PLUGIN_FAILED.log(plugin=plugin, hook=hook.name, traceback=True)
                continue
            yield implementation.plugin_name, result

    def _fails_first(self, plugin: str, hook: str) -> bool:
        first = (plugin, hook) not in self._failed
        self._failed.add((plugin, hook))
        return first


def _nbytes(chunks: ChunkBatch) -> int:
    return chunks.embeddings.nbytes + chunks.keys.nbytes + chunks.values.nbytes


def _copied(argument: Any) -> Any:
    """Return a copy of a tensor or of a record of tensors; anything else is immutable."""
    if isinstance(argument, Tensor):
        return argument.clone()
    if attrs.has(type(argument)):
        tensors = attrs.asdict(argument, recurse=False)
        return type(argument)(**{name: tensor.clone() for name, tensor in tensors.items()})
    return argument
