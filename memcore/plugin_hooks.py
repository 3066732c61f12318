"""Calls the hooks around store, retrieve and evict so that no plugin can harm the memory, or another plugin."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs
import pluggy
from torch import Tensor

from memcore.eviction import problem_with_choice
from memcore.plugins import PluginRegistry, is_wrapper, registry

if TYPE_CHECKING:
    from memcore.chunk import ChunkBatch, SearchResult
    from memcore.eviction import ChunkUsage

logger = logging.getLogger(__name__)


class PluginHooks:
    """Tells each plugin by itself what happens in a bank: the :class:`memcore.bank_hooks.Hooks` of installed plugins.

    A plugin that raises, or decides what cannot be done, is logged once per hook and passed over: what observes must
    not break what it observes. Each gets copies, and may write to them. Calls cost next to nothing while no plugin
    implements the hook.

    Args:
        plugins: whom to tell; None for all that are installed.
    """

    def __init__(self, plugins: PluginRegistry | None = None) -> None:
        self._hook = (plugins or registry()).manager.hook
        self._failed: set[tuple[str, str]] = set()

    def stored(self, namespace: str, ids: Tensor, chunks: ChunkBatch) -> None:
        """Tell plugins of chunks that were stored."""
        for _ in self._results(self._hook.memcore_stored, namespace=namespace, ids=ids, chunks=chunks):
            pass

    def retrieved(self, namespace: str, ids: Tensor, result: SearchResult | None) -> None:
        """Tell plugins of a retrieval."""
        for _ in self._results(self._hook.memcore_retrieved, namespace=namespace, ids=ids, result=result):
            pass

    def evict(self, namespace: str, usage: ChunkUsage, capacity: int) -> Tensor | None:
        """Return the ids that the first plugin with an opinion would drop, or None if none has one."""
        hook = self._hook.memcore_evict
        for plugin, choice in self._results(hook, namespace=namespace, usage=usage, capacity=capacity):
            if choice is None:
                continue
            if not (problem := problem_with_choice(choice, usage, capacity)):
                assert isinstance(choice, Tensor)
                return choice
            if self._fails_first(plugin, hook.name):
                logger.error("plugin %r: memcore_evict %s; later failures are not logged", plugin, problem)
        return None

    def evicted(self, namespace: str, ids: Tensor) -> None:
        """Tell plugins of chunks that were dropped to make room."""
        for _ in self._results(self._hook.memcore_evicted, namespace=namespace, ids=ids):
            pass

    def _results(self, hook: pluggy.HookCaller, **arguments: object) -> Iterator[tuple[str, object]]:
        for implementation in reversed(hook.get_hookimpls()):
            if is_wrapper(implementation):
                continue
            try:
                result = implementation.function(*(_copied(arguments[name]) for name in implementation.argnames))
            except Exception:
                if self._fails_first(implementation.plugin_name, hook.name):
                    logger.exception(
                        "plugin %r failed in %s; later failures are not logged", implementation.plugin_name, hook.name
                    )
                continue
            yield implementation.plugin_name, result

    def _fails_first(self, plugin: str, hook: str) -> bool:
        first = (plugin, hook) not in self._failed
        self._failed.add((plugin, hook))
        return first


def _copied(argument: Any) -> Any:
    """Return a copy of a tensor or of a record of tensors; anything else is immutable."""
    if isinstance(argument, Tensor):
        return argument.clone()
    if attrs.has(type(argument)):
        tensors = attrs.asdict(argument, recurse=False)
        return type(argument)(**{name: tensor.clone() for name, tensor in tensors.items()})
    return argument
