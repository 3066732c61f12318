"""The plugin manager: finds what is installed, keeps a broken plugin from breaking the rest, loads components by name.

Plugins are entry points of the group ``memcore``; ``builtin`` is one of them and always loads. The environment variable
``MEMCORE_PLUGINS`` restricts the others: a comma-separated list of entry-point names; unset loads all, empty none.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections.abc import Iterable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Literal, cast, overload

import attrs
import pluggy

from memcore import events, hookspecs
from memcore.component_check import KINDS, NOUNS, Kind, problem_with_class
from memcore.errors import MissingDependencyError, PluginError, UnknownNameError
from memcore.hookspecs import Component
from memcore.options import describe, nearest

if TYPE_CHECKING:
    from memcore.adapter import ModelAdapter
    from memcore.backend import MemoryBackend
    from memcore.embedder import ChunkEmbedder
    from memcore.eviction import EvictionPolicy

GROUP = "memcore"
BUILTIN = "builtin"
ENVIRONMENT = "MEMCORE_PLUGINS"


@attrs.frozen(kw_only=True)
class PluginReport:
    """What became of one plugin.

    Attributes:
        name: its entry-point name.
        distribution: the distribution that ships it, empty if it was registered by hand.
        version: that distribution's version.
        status: ``"ok"``; ``"problem"``, loaded but partly unusable; ``"failed"``, not loaded; ``"disabled"`` by
            ``MEMCORE_PLUGINS``.
        error: why it is not ok, one reason per entry.
    """

    name: str
    distribution: str = ""
    version: str = ""
    status: Literal["ok", "problem", "failed", "disabled"] = "ok"
    error: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Offer:
    """A component and the plugin that offers it."""

    component: Component
    plugin: str

    def missing(self) -> str:
        """Return why it cannot be used here: what is missing and how to install it; empty if nothing is."""
        absent = [module for module in self.component.requires if not _importable(module)]
        if not absent:
            return ""
        cure = f': pip install "{self.component.install}"' if self.component.install else ""
        return f"{', '.join(absent)} is not installed{cure}"


class PluginRegistry:
    """All plugins of this process and the components they offer."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self._reports: dict[str, PluginReport] = {}

    @property
    def reports(self) -> list[PluginReport]:
        """What became of each plugin, the built-in one first, then in the order they were loaded."""
        for kind in KINDS:
            self.components(kind)  # finds the problems that show only there
        return list(self._reports.values())

    def load_entry_points(self, only: str | None = None) -> None:
        """Load the installed plugins.

        Args:
            only: value of ``MEMCORE_PLUGINS``; None for no restriction.
        """
        wanted = None if only is None else {name.strip() for name in only.split(",") if name.strip()}
        # The first to offer a name keeps it, so the order is fixed: built-in, then by name.
        points = sorted(entry_points(group=GROUP), key=lambda point: (point.name != BUILTIN, point.name, point.value))
        for point in points:
            self._load(point, wanted)
        for name in sorted((wanted or set()) - {point.name for point in points}):
            events.PLUGIN_MISSING.log(variable=ENVIRONMENT, plugin=name)

    def _load(self, point: EntryPoint, wanted: set[str] | None) -> None:
        report = PluginReport(
            name=point.name,
            distribution=point.dist.name if point.dist else "",
            version=point.dist.version if point.dist else "",
        )
        if wanted is not None and point.name not in wanted and point.name != BUILTIN:
            self._reports[point.name] = attrs.evolve(report, status="disabled")
            return
        try:
            plugin = point.load()
        # A plugin may do anything when it is imported, and the rest must work all the same.
        except (Exception, SystemExit) as error:
            self._record(report, f"{point.value} cannot be imported: {_reason(error)}", failed=True)
            return
        with contextlib.suppress(PluginError):  # recorded and logged
            self.register(plugin, report=report)

    def register(self, plugin: object, name: str | None = None, *, report: PluginReport | None = None) -> None:
        """Register a plugin that was not installed as one, e.g. an observer written in a notebook.

        Args:
            plugin: a module or object with methods marked ``@memcore.hookimpl``.
            name: what messages call it.
            report: what is known of it already.

        Raises:
            PluginError: an implementation asks for arguments that its hook does not have, or the name is taken.
        """
        if report is None:
            report = PluginReport(name=name or getattr(plugin, "__name__", "") or type(plugin).__name__)
        name = report.name
        if self.manager.has_plugin(name) or name in self._reports:
            # Kept under a name of its own, or the report of the plugin that works would be lost.
            twin = attrs.evolve(report, name=f"{name} ({report.distribution or 'again'})")
            raise PluginError(self._record(twin, f"another plugin is already called {name!r}", failed=True))
        try:
            self.manager.register(plugin, name)
        # PluginValidationError for wrong arguments, ValueError for an object that is registered already.
        except (pluggy.PluginValidationError, ValueError) as error:
            if self.manager.get_plugin(name) is plugin:
                self.manager.unregister(name=name)
            text = str(error).replace("\n", " ").strip()
            raise PluginError(self._record(report, f"cannot be registered: {text}", failed=True)) from error
        self._reports[name] = report
        callers = self.manager.get_hookcallers(plugin) or []
        if not callers:
            self._problem(name, "implements no hook: its functions must be marked @memcore.hookimpl")
        for caller in callers:
            for implementation in caller.get_hookimpls():
                if implementation.plugin is not plugin:
                    continue
                if not caller.has_spec():
                    known = [hook for hook in vars(hookspecs) if hook.startswith("memcore_")]
                    self._problem(name, f"implements an unknown hook {caller.name!r}{nearest(caller.name, known)}")
                elif is_wrapper(implementation):
                    self._problem(name, f"{caller.name} is a wrapper; memcore calls each plugin by itself: not called")

    def components(self, kind: Kind) -> dict[str, Offer]:
        """Return everything of a kind that plugins offer, by name, without importing any of it."""
        offers: dict[str, Offer] = {}
        hook: pluggy.HookCaller = getattr(self.manager.hook, f"memcore_{kind}")
        for implementation in _in_order_of_registration(hook, self.manager):
            for component in self._offered_by(implementation, hook.name):
                offer = Offer(component=component, plugin=implementation.plugin_name)
                first = offers.setdefault(component.name, offer)
                if first is not offer:
                    self._problem(
                        offer.plugin,
                        f"{NOUNS[kind]} {component.name!r} is already offered by plugin {first.plugin!r}, "
                        "which keeps the name",
                    )
        return offers

    def _offered_by(self, implementation: pluggy.HookImpl, hook: str) -> Iterator[Component]:
        try:
            offered = list(cast("Iterable[object]", implementation.function()))
        except Exception as error:
            self._problem(implementation.plugin_name, f"{hook} failed: {_reason(error)}")
            return
        for component in offered:
            if isinstance(component, Component):
                yield component
            else:
                self._problem(
                    implementation.plugin_name,
                    f"{hook} must return memcore.Component objects, got {describe(component)}",
                )

    @overload
    def load_component(self, kind: Literal["backends"], name: str) -> type[MemoryBackend]: ...
    @overload
    def load_component(self, kind: Literal["embedders"], name: str) -> type[ChunkEmbedder]: ...
    @overload
    def load_component(self, kind: Literal["eviction_policies"], name: str) -> type[EvictionPolicy]: ...
    @overload
    def load_component(self, kind: Literal["adapters"], name: str) -> type[ModelAdapter]: ...
    def load_component(self, kind: Kind, name: str) -> type:
        """Import a component and check that it is what it claims to be.

        Raises:
            UnknownNameError: no plugin offers it; the message lists what there is.
            MissingDependencyError: a package it needs is not installed; the message says what to install.
            PluginError: it cannot be imported, or is no concrete class of its kind.
        """
        noun = NOUNS[kind]
        offers = self.components(kind)
        if name not in offers:
            raise UnknownNameError(self._unknown(noun, name, list(offers)))
        offer = offers[name]
        what = f"{noun} {name!r} of plugin {offer.plugin!r}"
        if missing := offer.missing():
            raise MissingDependencyError(f"{noun} {name!r} cannot be used: {missing}")
        try:
            cls: object = offer.component.load()
        except (Exception, SystemExit) as error:
            raise PluginError(f"{what} cannot be loaded: {_reason(error)}") from error
        if problem := problem_with_class(kind, cls):
            raise PluginError(f"{what}{problem}")
        assert isinstance(cls, type)
        return cls

    def _unknown(self, noun: str, name: str, known: list[str]) -> str:
        message = f"there is no {noun} {name!r}{nearest(name, known)}"
        message += f"; available: {', '.join(sorted(known)) or 'none'}"
        if BUILTIN not in self._reports:
            message += ". No plugin was found at all: is memcore-llm installed (pip install -e .)?"
        broken = [f"{report.name!r} ({report.error[0]})" for report in self._reports.values() if report.error]
        return f"{message}. Plugins with problems: {', '.join(broken)}" if broken else message

    def _problem(self, plugin: str, text: str) -> None:
        report = self._reports[plugin]
        if text not in report.error:
            self._record(report, text, failed=False)

    def _record(self, report: PluginReport, text: str, *, failed: bool) -> str:
        status: Literal["failed", "problem"] = "failed" if failed else "problem"
        self._reports[report.name] = attrs.evolve(report, status=status, error=(*report.error, text))
        events.PLUGIN_PROBLEM.log(plugin=report.name, problem=text)
        return f"plugin {report.name!r}: {text}"


@functools.cache
def registry() -> PluginRegistry:
    """Return the registry of this process, with every installed plugin loaded."""
    found = PluginRegistry()
    found.load_entry_points(os.environ.get(ENVIRONMENT))
    return found


def _in_order_of_registration(hook: pluggy.HookCaller, manager: pluggy.PluginManager) -> list[pluggy.HookImpl]:
    # pluggy keeps implementations in calling order, which tryfirst and trylast change; a name clash must not depend
    # on them.
    order = {name: index for index, (name, _) in enumerate(manager.list_name_plugin())}
    implementations = [each for each in hook.get_hookimpls() if not is_wrapper(each)]
    return sorted(implementations, key=lambda each: order.get(each.plugin_name, len(order)))


def is_wrapper(implementation: pluggy.HookImpl) -> bool:
    """Return whether an implementation wraps those of other plugins, which memcore does not allow."""
    return bool(implementation.wrapper or implementation.hookwrapper)


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a parent package is missing, or a stub without a spec stands in its place
        return False


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
