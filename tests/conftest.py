"""What all tests share: seeds, the small real model, and what the oracles found."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch

# pytest finds the hooks here by name.
from family_findings import (  # noqa: F401
    pytest_addoption,
    pytest_configure,
    pytest_runtest_makereport,
    pytest_sessionfinish,
)
from hypothesis import settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# A shell has what it runs in the background ignore Ctrl-C, which some tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests choose their own width, which rich takes from here once and for all when the command line is first imported.
os.environ.pop("COLUMNS", None)

# A slow machine is no failure, and CI must fail the same way twice.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def gemma() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Gemma 3 270M and its tokenizer. Unwrap what you wrap: the session shares it."""
    from memcore.demo.weights import demo_model_path
    from memcore.errors import MissingDependencyError
    from memcore.model_source import load_model

    try:
        path = demo_model_path()
    except MissingDependencyError as error:
        pytest.skip(f"needs the model of the demo extra: {error}")
    return load_model(str(path), device="cpu")


@pytest.fixture
def plugin_folder(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that installs a plugin the way pip does: a module and the metadata of its distribution."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name: str, source: str, distribution: str = "", module: str = "") -> None:
        distribution = distribution or f"{name}-plugin"
        module = module or f"memcore_test_{name}"
        (tmp_path / f"{module}.py").write_text(source)
        # The next test may install another plugin of this name.
        monkeypatch.setitem(sys.modules, module, sys)
        monkeypatch.delitem(sys.modules, module)
        info = tmp_path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[memcore]\n{name} = {module}\n")

    return install


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: Any) -> str:
    """A tiny random llama with a tokenizer that knows the words w0, w1, ..."""
    from tiny_models import VOCABULARY, tiny_model
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate(["<pad>", "<s>", *(f"w{n}" for n in range(VOCABULARY - 2))])}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = str(tmp_path_factory.mktemp("tiny"))
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>").save_pretrained(folder)
    tiny_model("llama").save_pretrained(folder)
    return folder
