"""The plugin manager, with plugins that are really installed: modules and metadata in a folder on the path."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from memcore.backend import MemoryBackend
from memcore.component_check import KINDS
from memcore.errors import ConfigError, MissingDependencyError, PluginError, UnknownNameError
from memcore.exact_backend import ExactBackend
from memcore.hookspecs import hookimpl
from memcore.options import structure_options
from memcore.plugins import PluginRegistry

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
    @hookimpl
    def memcore_stored(self) -> None:
        pass


def options_of(kind: str, options: str) -> str:
    """Return the source of a plugin whose backend lacks nothing but, perhaps, good options."""
    return (
        "import attrs, memcore\nfrom pathlib import Path\n"
        f"base = memcore.{kind}\n"
        f"{options}\n"
        "body = {name: lambda *a: None for name in base.__abstractmethods__} | {'Options': Options}\n"
        "Acme = type('Acme', (base,), body)\n" + offer("acme", "lambda: Acme")
    )


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("MemoryBackend", "class Options: pass", r"must be an attrs class, got <class .*Options"),
        ("MemoryBackend", "Options = None", "must be an attrs class, got None"),
        ("MemoryBackend", "Options = attrs.make_class('Options', {'x': attrs.field(type='Thing')})", "'Thing'"),
        ("PersistentBackend", "Options = attrs.make_class('Options', {})", r"must have a field path: pathlib\.Path"),
        (
            "PersistentBackend",
            "Options = attrs.make_class('Options', {'path': attrs.field(type=str)})",
            r"must have a field path: pathlib\.Path",
        ),
        (
            "PersistentBackend",
            "Options = attrs.make_class('Options', {'path': attrs.field(type=Path)})",
            "must have a field read_only: bool = False",
        ),
        (
            "PersistentBackend",
            "fields = {'path': attrs.field(type=Path), 'read_only': attrs.field(type=bool, default=True)}\n"
            "Options = attrs.make_class('Options', fields)",
            "must have a field read_only: bool = False",
        ),
    ],
)
def test_options_that_cannot_be_used_are_refused(plugin_folder: Any, kind: str, options: str, says: str) -> None:
    plugin_folder("acme", options_of(kind, options))
    with pytest.raises(PluginError, match=rf"backend 'acme' of plugin 'acme': Acme\.Options .*{says}"):
        loaded().load_component("backends", "acme")


def test_options_with_path_and_read_only_are_enough(plugin_folder: Any) -> None:
    fields = ("path: 'Path'", "read_only: 'bool' = False", "speed: 'float | None' = None")
    options = "\n    ".join(("@attrs.frozen\nclass Options:", *fields))
    plugin_folder("acme", options_of("PersistentBackend", options))
    assert loaded().load_component("backends", "acme").__name__ == "Acme"


def test_a_plugin_that_exits_leaves_the_rest_working(plugin_folder: Any) -> None:
    plugin_folder("acme", "raise SystemExit(3)")
    plugin_folder("beta", offer("beta", "lambda: __import__('sys').exit(4)"))
    registry = loaded()
    assert report(registry, "acme").status == "failed"
    assert "exact" in registry.components("backends")
    with pytest.raises(PluginError, match="backend 'beta' of plugin 'beta' cannot be loaded: SystemExit: 4"):
        registry.load_component("backends", "beta")


def test_wrong_options_name_the_field_and_the_backend(plugin_folder: Any) -> None:
    plugin_folder("acme", options_of("MemoryBackend", "@attrs.frozen\nclass Options:\n    speed: int = 1"))
    backend = loaded().load_component("backends", "acme")
    with pytest.raises(ConfigError, match=r"^backend_options of 'acme': unknown field 'sped', did you mean 'speed'\?"):
        structure_options(backend.Options, {"sped": 2}, "backend_options of 'acme'")


def test_registering_twice_is_refused() -> None:
    registry = PluginRegistry()
    registry.register(Observer(), "observer")
    with pytest.raises(PluginError, match="already called 'observer'"):
        registry.register(Observer(), "observer")
    assert report(registry, "observer").status == "ok"
