"""The plugin manager, with plugins that are really installed: modules and metadata in a folder on the path."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from memcore.backend import MemoryBackend
from memcore.errors import MissingDependencyError, PluginError, UnknownNameError
from memcore.exact_backend import ExactBackend
from memcore.hookspecs import hookimpl
from memcore.plugins import KINDS, PluginHooks, PluginRegistry

HEAD = "from memcore import Component, hookimpl\n"


def offer(name: str, load: str, **more: object) -> str:
    extra = "".join(f", {key}={value!r}" for key, value in more.items())
    return (
        f"{HEAD}@hookimpl\ndef memcore_backends():\n"
        f"    return [Component(name={name!r}, summary='a test', load={load}{extra})]\n"
    )


GOOD = "lambda: __import__('memcore.exact_backend').exact_backend.ExactBackend"


def loaded(only: str | None = None) -> PluginRegistry:
    registry = PluginRegistry()
    registry.load_entry_points(only)
    return registry


def report(registry: PluginRegistry, name: str) -> Any:
    return next(each for each in registry.reports if each.name == name)


def test_the_built_in_plugin_comes_through_its_entry_point() -> None:
    registry = loaded()
    assert registry.reports[0].name == "builtin"
    assert registry.reports[0].distribution == "memcore-llm"


@pytest.mark.parametrize("kind", KINDS)
def test_every_built_in_component_loads(kind: Any) -> None:
    registry = loaded()
    for name, found in registry.components(kind).items():
        if not found.missing():
            assert isinstance(registry.load_component(kind, name), type)


def test_an_installed_plugin_is_found(plugin_folder: Any) -> None:
    plugin_folder("acme", offer("acme", GOOD))
    registry = loaded()
    assert registry.load_component("backends", "acme") is ExactBackend
    assert report(registry, "acme").status == "ok"
    assert report(registry, "acme").distribution == "acme-plugin"
    assert report(registry, "acme").version == "1.0"


def test_a_plugin_that_cannot_be_imported_leaves_the_rest_working(plugin_folder: Any, caplog: Any) -> None:
    plugin_folder("broken", "raise RuntimeError('no such driver')")
    with caplog.at_level(logging.WARNING):
        registry = loaded()
    assert report(registry, "broken").status == "failed"
    assert "RuntimeError: no such driver" in report(registry, "broken").error[0]
    assert "no such driver" in caplog.text
    assert "exact" in registry.components("backends")


def test_a_hook_with_wrong_arguments_fails_its_plugin_alone(plugin_folder: Any) -> None:
    plugin_folder("nosy", f"{HEAD}@hookimpl\ndef memcore_stored(namespace, secret): pass\n")
    registry = loaded()
    assert report(registry, "nosy").status == "failed"
    assert "secret" in report(registry, "nosy").error[0]
    assert not registry.manager.has_plugin("nosy")


def test_a_misspelt_hook_is_reported_with_the_nearest(plugin_folder: Any) -> None:
    plugin_folder("typo", f"{HEAD}@hookimpl\ndef memcore_backend(): return []\n")
    assert report(loaded(), "typo").status == "problem"
    assert "'memcore_backend', did you mean 'memcore_backends'?" in report(loaded(), "typo").error[0]


def test_a_plugin_without_marked_functions_is_reported(plugin_folder: Any) -> None:
    plugin_folder("unmarked", "def memcore_backends(): return []\n")
    assert "must be marked @memcore.hookimpl" in report(loaded(), "unmarked").error[0]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return ['acme']", "must return memcore.Component objects, got 'acme'"),
        ("return None", "memcore_backends failed: TypeError"),
        ("raise OSError('gone')", "memcore_backends failed: OSError: gone"),
    ],
)
def test_a_bad_offer_is_reported(plugin_folder: Any, body: str, says: str) -> None:
    plugin_folder("bad", f"{HEAD}@hookimpl\ndef memcore_backends():\n    {body}\n")
    registry = loaded()
    assert says in report(registry, "bad").error[0]
    assert "exact" in registry.components("backends")


def test_the_first_plugin_keeps_a_name_and_both_are_named(plugin_folder: Any) -> None:
    plugin_folder("zeta", offer("acme", GOOD))
    plugin_folder("beta", offer("acme", GOOD))
    plugin_folder("alpha", offer("exact", GOOD))
    registry = loaded()
    offers = registry.components("backends")
    assert (offers["exact"].plugin, offers["acme"].plugin) == ("builtin", "beta")
    assert "'exact' is already offered by plugin 'builtin'" in report(registry, "alpha").error[0]
    assert "'acme' is already offered by plugin 'beta'" in report(registry, "zeta").error[0]


def test_two_distributions_with_one_plugin_name(plugin_folder: Any) -> None:
    plugin_folder("acme", offer("one", GOOD), distribution="first", module="memcore_test_first")
    plugin_folder("acme", offer("two", GOOD), distribution="second", module="memcore_test_second")
    registry = loaded()
    assert report(registry, "acme").status == "ok"
    assert [each.status for each in registry.reports if each.name.startswith("acme (")] == ["failed"]


@pytest.mark.parametrize(
    ("only", "status"), [(None, "ok"), ("", "disabled"), ("other", "disabled"), (" acme ,other", "ok")]
)
def test_the_environment_restricts_what_loads(plugin_folder: Any, only: str | None, status: str) -> None:
    plugin_folder("acme", offer("acme", GOOD))
    registry = loaded(only)
    assert report(registry, "acme").status == status
    assert ("acme" in registry.components("backends")) == (status == "ok")
    assert "exact" in registry.components("backends")


def test_an_unknown_name_lists_what_there_is_and_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"no backend 'exakt', did you mean 'exact'\?; available: .*exact"):
        loaded().load_component("backends", "exakt")


def test_an_unknown_name_mentions_plugins_that_failed(plugin_folder: Any) -> None:
    plugin_folder("acme", "import a_package_that_is_not_there")
    with pytest.raises(UnknownNameError, match=r"Plugins with problems: 'acme' .*a_package_that_is_not_there"):
        loaded().load_component("backends", "acme")


def test_a_missing_dependency_says_what_to_install(plugin_folder: Any) -> None:
    plugin_folder("acme", offer("acme", GOOD, requires=("no_such_package",), install="acme[fast]"))
    registry = loaded()
    assert report(registry, "acme").status == "ok"
    with pytest.raises(MissingDependencyError, match=r"no_such_package is not installed: pip install \"acme\[fast\]\""):
        registry.load_component("backends", "acme")


@pytest.mark.parametrize(
    ("load", "says"),
    [
        ("lambda: 1 / 0", "cannot be loaded: ZeroDivisionError"),
        ("lambda: __import__('no_such_module')", "cannot be loaded: ModuleNotFoundError"),
        ("lambda: dict", "must be a subclass of memcore.MemoryBackend"),
        ("lambda: 3", "must be a subclass of memcore.MemoryBackend, got 3"),
        ("lambda: __import__('memcore').MemoryBackend", "does not implement .*retrieve"),
    ],
)
def test_a_component_that_is_none_is_refused(plugin_folder: Any, load: str, says: str) -> None:
    plugin_folder("acme", offer("acme", load))
    with pytest.raises(PluginError, match=f"backend 'acme' of plugin 'acme'.*{says}"):
        loaded().load_component("backends", "acme")


def test_an_incomplete_backend_names_the_missing_method(plugin_folder: Any) -> None:
    names = [name for name in MemoryBackend.__abstractmethods__ if name != "drop"]
    source = "from memcore import MemoryBackend\n"
    source += "Half = type('Half', (MemoryBackend,), {" + ", ".join(f"{n!r}: lambda *a: None" for n in names) + "})\n"
    plugin_folder("acme", source + offer("acme", "lambda: Half"))
    with pytest.raises(PluginError, match=r"Half does not implement drop$"):
        loaded().load_component("backends", "acme")


class Observer:
    def __init__(self) -> None:
        self.calls: list[str] = []

    @hookimpl
    def memcore_stored(self, namespace: str) -> None:
        self.calls.append(namespace)


class Failing:
    @hookimpl
    def memcore_stored(self, namespace: str) -> None:
        raise ValueError(namespace)

    @hookimpl
    def memcore_evict(self, capacity: int) -> None:
        raise ValueError(capacity)


class Deciding:
    def __init__(self, ids: torch.Tensor | None) -> None:
        self.ids = ids

    @hookimpl
    def memcore_evict(self, capacity: int) -> torch.Tensor | None:
        return self.ids


NOTHING: Any = None


def test_observers_are_told() -> None:
    registry = PluginRegistry()
    observer = Observer()
    registry.register(observer, "observer")
    PluginHooks(registry).stored("ns", torch.arange(2), NOTHING)
    assert observer.calls == ["ns"]


def test_a_failing_observer_is_logged_once_and_stops_nobody(caplog: Any) -> None:
    registry = PluginRegistry()
    observer = Observer()
    registry.register(observer, "observer")
    registry.register(Failing(), "failing")
    hooks = PluginHooks(registry)
    for namespace in "ab":
        hooks.stored(namespace, torch.arange(2), NOTHING)
    assert observer.calls == ["a", "b"]
    assert [record.message for record in caplog.records] == [
        "plugin 'failing' failed in memcore_stored; later failures are not logged"
    ]


def test_the_first_decision_counts() -> None:
    registry = PluginRegistry()
    for name, plugin in (
        ("decides", Deciding(torch.tensor([3]))),
        ("leaves it", Deciding(None)),
        ("fails", Failing()),
    ):
        registry.register(plugin, name)
    dropped = PluginHooks(registry).evict("ns", NOTHING, 4)
    assert dropped is not None
    assert dropped.tolist() == [3]


def test_nobody_decides_without_plugins() -> None:
    assert PluginHooks(PluginRegistry()).evict("ns", NOTHING, 4) is None


def test_a_plugin_registered_later_is_heard() -> None:
    registry = PluginRegistry()
    hooks = PluginHooks(registry)
    observer = Observer()
    registry.register(observer, "late")
    hooks.stored("ns", torch.arange(2), NOTHING)
    assert observer.calls == ["ns"]


def test_registering_twice_is_refused() -> None:
    registry = PluginRegistry()
    registry.register(Observer(), "observer")
    with pytest.raises(PluginError, match="already called 'observer'"):
        registry.register(Observer(), "observer")
    assert report(registry, "observer").status == "ok"
