"""What is released agrees: the version, the head of the changelog, the tag; and what is built can be installed."""

from __future__ import annotations

import datetime
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.version import Version

import memcore

ROOT = Path(__file__).parents[2]
HEADS = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_the_head_of_the_changelog_is_the_version() -> None:
    version, _, when = HEADS[0].partition(" ")
    assert version == memcore.__version__ == str(Version(version))
    assert len(Version(version).release) == 3
    if when != "(unreleased)":
        datetime.date.fromisoformat(when.strip("()"))


def test_the_changelog_has_the_newest_version_first_and_only_that_may_be_unreleased() -> None:
    versions = [Version(head.partition(" ")[0]) for head in HEADS]
    assert versions == sorted(set(versions), reverse=True)
    assert all("(unreleased)" not in head for head in HEADS[1:])


def test_a_tagged_commit_has_the_tag_of_its_version() -> None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not in a git checkout")
    command = ["git", "-C", str(ROOT), "tag", "--points-at", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    tags = [tag for tag in done.stdout.split() if re.match(r"v?\d", tag)]
    assert tags in ([], [f"v{memcore.__version__}"])
    if tags:
        assert "(unreleased)" not in HEADS[0]


def test_the_version_stands_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "memcore.__version__"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sdist and wheel, the wheel made from the sdist, with the setuptools that is here."""
    pytest.importorskip("build", reason="build is not installed")
    pytest.importorskip("setuptools", minversion="77", reason="setuptools is not installed")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_wheel_and_sdist_hold_all_modules_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    rooms = [ROOT / "memcore", *(ROOT / "backends").glob("memcore_*"), *(ROOT / "adapters").glob("memcore_*")]
    modules = {str(file.relative_to(room.parent)) for room in rooms for file in room.rglob("*.py")}
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
    assert {name for name in names if name.endswith(".py")} == modules
    assert "memcore/serving/static/index.html" in names
    assert {f"{room.name}/py.typed" for room in rooms} <= names
    others = {name for name in names if not name.endswith(".py") and ".dist-info/" not in name}
    assert {Path(name).suffix for name in others} <= {".typed", ".html", ".js", ".css"}
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as packed_source:
        kept = {Path(*Path(name).parts[1:]).as_posix() for name in packed_source.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml"} <= kept


@pytest.mark.slow
def test_the_wheel_works_without_the_sources(built: Path, tmp_path: Path) -> None:
    """In a fresh environment, with borrowed dependencies; `make test-wheel` installs them."""
    (wheel,) = built.glob("*.whl")
    place = tmp_path / "env"
    venv.create(place, with_pip=True)
    python = place / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    command = [str(python), "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    (site,) = place.rglob("site-packages")
    # A folder named in a .pth file is looked into after the environment's own, and .pth files in it are not: the
    # sources that are installed there for editing stay out.
    (site / "borrowed.pth").write_text(str(Path(pytest.__file__).parents[1]), encoding="utf-8")
    where = "import memcore, memcore_adapters; print(memcore.__file__, memcore_adapters.__file__)"
    done = subprocess.run([str(python), "-c", where], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert all(str(site) in each for each in done.stdout.split()), done.stdout
    memcore_command = python.with_name("memcore")
    doctor = subprocess.run(
        [memcore_command, "plugins", "--check"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    demo = subprocess.run(
        [memcore_command, "demo", "--tokens", "4200", "--facts", "1", "--no-full"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    if "the demo's model is not installed" in demo.stderr:
        pytest.skip("needs the model of the demo extra")
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "with memory     right" in demo.stdout
