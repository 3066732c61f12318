"""The example plugins, built and installed into a fresh environment as a third party would, and used there.

The environment is new and holds nothing but them; torch and the like it finds in the one that runs the tests.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import attrs
import pytest
from tiny_models import random_tokens, tiny_model

import memcore

ROOT = Path(__file__).parents[2]
EXAMPLES = ("memcore-sqlite", "memcore-metrics", "memcore-prometheus")

CONFIG = memcore.MemoryConfig(window=32, sinks=2, chunk_size=4, top_k=3, query_tokens=4, question_tokens=4)

GENERATE = """
import json, sys, prometheus_client, torch, memcore
from tiny_models import random_tokens, tiny_model

model = memcore.wrap(tiny_model("llama"), sys.argv[1])
prompt = random_tokens(1, 150, seed=1)
cache = model.memory.new_cache()
tokens = model.generate(prompt, past_key_values=cache, max_new_tokens=6, do_sample=False)[0, 150:]
backend = model.memory.bank.backend
found = {"tokens": tokens.tolist(), "backend": type(backend).__module__, "bytes": backend.nbytes()}
metrics = prometheus_client.generate_latest().decode()  # what would be scraped
print(json.dumps({**found, "metrics": metrics}))
"""

INGEST = """
import sys, memcore
from tiny_models import random_tokens, tiny_model

model = memcore.wrap(tiny_model("llama"), sys.argv[1])
memcore.Session(model, "book").ingest(random_tokens(1, 150, seed=1))
model.memory.bank.close()
"""

ASK = """
import json, sys, memcore
from tiny_models import random_tokens, tiny_model

model = memcore.wrap(tiny_model("llama"), sys.argv[1])
answer = memcore.Session(model, "book").ask(random_tokens(1, 6, seed=2), max_new_tokens=6)
print(json.dumps(answer.token_ids.flatten().tolist()))
"""


@attrs.frozen
class Environment:
    """A virtual environment with the examples in it."""

    folder: Path
    wheels: dict[str, Path]

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run its Python, in its folder."""
        python = self.folder / ("Scripts" if os.name == "nt" else "bin") / "python"
        hidden = {"PYTHONPATH", "MEMCORE_PLUGINS", "MEMCORE_METRICS", "MEMCORE_PROMETHEUS", "PYTEST_ADDOPTS"}
        inherited = {name: value for name, value in os.environ.items() if name not in hidden}
        return subprocess.run(
            [str(python), *command],
            cwd=self.folder,
            env={**inherited, **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    def memcore(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run its ``memcore`` command."""
        return self.run("-c", "from memcore.cli import app; app()", *arguments, **variables)

    def json(self, *command: str, **variables: str) -> Any:
        """Run its Python and return what it prints last."""
        done = self.run(*command, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("third_party")
    wheels = {}
    for name in EXAMPLES:
        source = shutil.copytree(ROOT / "examples" / name, folder / "source" / name)
        pip("wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", str(folder), str(source))
        (wheels[name],) = folder.glob(f"{name.replace('-', '_')}-*.whl")
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (packages,) = {Path(path) for path in venv.rglob("site-packages")}
    (packages / "packages_of_the_tests.pth").write_text(
        f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    )
    pip("install", "--no-deps", "--no-index", "--target", str(packages), *map(str, wheels.values()))
    shutil.copytree(ROOT / "examples" / "memcore-sqlite" / "tests", venv / "tests")
    shutil.copy(ROOT / "tests" / "tiny_models.py", venv)
    return Environment(venv, wheels)


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def config(environment: Environment, tmp_path: Path) -> str:
    """A configuration file that selects the backend."""
    plain = {**attrs.asdict(CONFIG), "backend": "sqlite", "backend_options": {"path": str(tmp_path / "memory.db")}}
    file = tmp_path / "memory.json"
    file.write_text(json.dumps(plain))
    return str(file)


def test_the_wheel_holds_the_package_and_its_entry_point(environment: Environment) -> None:
    with zipfile.ZipFile(environment.wheels["memcore-sqlite"]) as wheel:
        names = wheel.namelist()
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        assert wheel.read(entry_points).decode().split() == ["[memcore]", "sqlite", "=", "memcore_sqlite.plugin"]
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"memcore_sqlite"}
    assert "memcore_sqlite/py.typed" in names


def test_memcore_plugins_lists_it(environment: Environment) -> None:
    done = environment.memcore("plugins", "--check", "--json")
    found = json.loads(done.stdout)
    plugin = next(each for each in found["plugins"] if each["name"] == "sqlite")
    assert (plugin["distribution"], plugin["version"], plugin["status"]) == ("memcore-sqlite", "1.0", "ok")
    backend = next(each for each in found["components"] if each["name"] == "sqlite")
    assert (backend["kind"], backend["plugin"], backend["available"]) == ("backends", "sqlite", True)
    observing = {each["name"]: each["status"] for each in found["plugins"] if each["name"] in ("metrics", "prometheus")}
    assert observing == {"metrics": "ok", "prometheus": "ok"}


def test_the_environment_variable_keeps_it_out(environment: Environment) -> None:
    found = json.loads(environment.memcore("plugins", "--json", MEMCORE_PLUGINS="adapters").stdout)
    assert next(each["status"] for each in found["plugins"] if each["name"] == "sqlite") == "disabled"
    assert "sqlite" not in {each["name"] for each in found["components"]}


def test_it_passes_the_kit_there(environment: Environment) -> None:
    slow = "any_sequence or writer"  # `make test` runs all of the kit on it, beside the example
    options = ("-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-k", f"not ({slow})")
    done = environment.run("-m", "pytest", *options, "tests")
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_a_model_generates_with_it(environment: Environment, config: str, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.json"
    found = environment.json("-c", GENERATE, config, MEMCORE_METRICS=str(metrics))
    prompt = random_tokens(1, 150, seed=1)
    model = memcore.wrap(tiny_model("llama"), CONFIG)
    assert found["tokens"] == model.generate(prompt, max_new_tokens=6, do_sample=False)[0, 150:].tolist()
    assert found["backend"] == "memcore_sqlite.backend"
    assert found["bytes"] > 0
    counts = json.loads(metrics.read_text())["total"]  # the other examples were there, and watched
    assert counts["stored_bytes"] == found["bytes"]
    (scraped,) = re.findall(
        r'^memcore_stored_bytes_total\{backend="sqlite"\} (.*)$', found["metrics"], flags=re.MULTILINE
    )
    assert float(scraped) == found["bytes"]
    assert counts["retrieved"] > 0


def test_a_session_is_asked_in_another_process(environment: Environment, config: str, tmp_path: Path) -> None:
    done = environment.run("-c", INGEST, config)
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(tmp_path / "memory.db") as database:
        assert database.execute("SELECT count(*) FROM chunks").fetchone()[0] > 0
    session = memcore.Session(memcore.wrap(tiny_model("llama"), CONFIG), "book")
    session.ingest(random_tokens(1, 150, seed=1))
    want = session.ask(random_tokens(1, 6, seed=2), max_new_tokens=6)
    assert environment.json("-c", ASK, config) == want.token_ids.flatten().tolist()
