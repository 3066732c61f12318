"""What a new user does wrong in the first hour, and the one line that says so.

On the command line every mistake ends with an exit code and an error that names what was wrong, what was given and what
would be right; with ``--json`` with the same exit code and the same words as JSON. In Python it is a ``MemcoreError``.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runner import run
from tiny_models import random_tokens, tiny_model
from transformers import AutoTokenizer, BloomConfig, BloomForCausalLM, StaticCache, T5Config, T5ForConditionalGeneration

import memcore
from memcore.plugins import registry

SMALL = "--window 64 --set chunk_size=8"
CONFIG: dict[str, Any] = {"window": 64, "chunk_size": 8}
NOT_HERE = os.sep + "nowhere"

needs_lmdb = pytest.mark.skipif(
    bool(registry().components("backends")["lmdb"].missing()), reason="lmdb is not installed"
)


@pytest.fixture(scope="module")
def desk(tiny_folder: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths by name: what a user may have at hand, and take for something else."""
    folder = tmp_path_factory.mktemp("desk")
    texts = {
        "book": "w7 w3 w9 " * 100,
        "empty": " \n",
        "typo.toml": "window = 256\ntop_k = = 3\n",
        "field.toml": "windw = 256\n",
        "type.yaml": 'sinks: "4"\n',
        "open.yaml": "window: [1\n",
        "list.json": "[1, 2]\n",
        "table.csv": "text,kind\nw1,a\n",
        "questions.jsonl": '{"question": "w1"}\n',
        "nothing.toml": "",
        "rate.toml": "model = 'x'\ndocuments = ['x']\noutput = 'x'\nlearning_rate = 1\n",
        "steps.toml": "model = 'x'\ndocuments = ['x']\noutput = 'x'\n[[stages]]\nsteps = 0\n",
        "no_texts.toml": "model = 'x'\ndocuments = ['nowhere/*.txt']\noutput = 'x'\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "utf16").write_text("w7 w3", encoding="utf-16")
    (folder / "picture").write_bytes(bytes(range(128, 256)) + b"\0")
    (folder / "folder").mkdir()
    shutil.copytree(tiny_folder, folder / "models" / "tiny")
    shutil.copytree(tiny_folder, folder / "mute", ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    places = {path.name.replace(".", "_"): str(path) for path in folder.iterdir()}
    return {**places, "tiny": tiny_folder, "memory": str(folder / "memory"), "desk": str(folder)}


@pytest.fixture(scope="module")
def memory(desk: dict[str, str]) -> str:
    """A memory on disk with a session ``book``."""
    made = run(*_words("ingest {tiny} --session book --path {memory} --file {book}", desk), *SMALL.split())
    assert made.exit_code == 0, made.output
    return desk["memory"]


def _words(command: str, desk: dict[str, str]) -> list[str]:
    return [word.format_map(desk) for word in shlex.split(command)]


def _check(command: str, desk: dict[str, str], code: int, says: tuple[str, ...]) -> None:
    words = _words(command, desk)
    plain = run(*words)
    assert isinstance(plain.exception, SystemExit), plain.exception
    assert (plain.exit_code, plain.stdout) == (code, ""), plain.output
    *before, line = plain.stderr.strip().splitlines()
    assert line.startswith("error: " if code == 1 else "Error: "), plain.stderr
    assert code == 2 or not before, plain.stderr
    for part in says:
        assert part.format_map(desk) in line, plain.stderr
    as_json = run(*words, "--json")
    assert (as_json.exit_code, as_json.stderr) == (code, ""), as_json.output
    error = json.loads(as_json.stdout)["error"]
    assert f"rror: {error['message']}" in line
    assert error["type"].endswith("Error")


ASK = "ask {tiny} --question w1 " + SMALL
READ = ASK + " --file {book}"
FROM = ASK + " --session book --path {memory}"
PPL = "eval ppl {tiny} --output {folder} --file {book} --scored 50 --way window " + SMALL


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        # the command line itself
        ("aks {tiny}", 2, ("No such command 'aks'",)),
        ("ask --question w1", 2, ("Missing argument 'MODEL'",)),
        ("ask {tiny} --file {book}", 2, ("Missing option '--question'",)),
        (READ + " --windwo 3", 2, ("No such option: --windwo", "--window")),
        (READ + " --window many", 2, ("'--window'", "integer")),
        (READ + " --max-new-tokens 0", 2, ("'--max-new-tokens'", "1")),
        (READ + " {book}", 2, ("unexpected extra argument", "{book}")),
        (ASK, 1, ("give either a text, --file, or a session",)),
        (READ + " --session book", 1, ("give either a text, --file, or a session",)),
        # the model
        (f"ask {NOT_HERE}/model --file {{book}} --question w1", 1, (f"no folder '{NOT_HERE}/model'", "owner/name")),
        ("ask ./none --file {book} --question w1", 1, ("there is no folder './none'", "hub id")),
        ("ask {book} --file {book} --question w1", 1, ("{book}", "is a file", "a folder, or a hub id")),
        ("ask {tiny}/config.json --file {book} --question w1", 1, ("is a file", "name the folder", "'{tiny}'")),
        ("ask {folder} --file {book} --question w1", 1, ("there is no model in '{folder}'", "no config.json")),
        ("ask {models} --file {book} --question w1", 1, ("no config.json; is it '{models}" + os.sep + "tiny'?",)),
        ("ask {mute} --file {book} --question w1", 1, ("cannot load the tokenizer of '{mute}'",)),
        (READ + " --device gpu", 1, ("no device 'gpu'", "'cpu', 'cuda'")),
        (READ + " --device cuda:99", 1, ("device 'cuda:99'", "'c")),
        (READ + " --dtype bf16", 1, ("no dtype 'bf16'", "did you mean 'bfloat16'?")),
        (READ + " --dtype int8", 1, ("no dtype 'int8' for weights", "'float16'")),
        # the text and the question
        (ASK + " --file nowhere.txt", 2, ("'--file'", "nowhere.txt", "No such file")),
        (ASK + " --file {empty}", 1, ("{empty} has no text in it",)),
        (ASK + " --file {utf16}", 1, ("cannot read '{utf16}' as UTF-8", "UTF-16", "save it as UTF-8")),
        (ASK + " --file {picture}", 1, ("cannot read '{picture}' as UTF-8", "byte 0x80 at 0", "no text at all")),
        (READ + " --question ''", 1, ("a question is empty",)),
        ("chat {tiny} --file {folder}", 1, ("cannot read '{folder}' as UTF-8 text",)),
        ("chat {tiny} --temperature -1", 2, ("'--temperature'", "0")),
        # the configuration
        (READ + " --top-k 0", 1, ("top_k must be an integer of at least 1", "got 0")),
        (READ + " --window -5", 1, ("window must be an integer of at least 1", "got -5")),
        (READ + " --window 9", 1, ("window (9) must be at least two chunks", "make window 16 or more")),
        (READ + " --set windw=3", 1, ("unknown field 'windw', did you mean 'window'?",)),
        (READ + " --set window", 1, ("--set takes FIELD=VALUE, got 'window'",)),
        (READ + " --set layers=[99]", 1, ("[99]", "those that can: [0, 1]")),
        (READ + " --set embedder=subblok", 1, ("no embedder 'subblok', did you mean 'subblock'?",)),
        (READ + " --set eviction=lur", 1, ("no eviction policy 'lur', did you mean 'lru'?",)),
        (READ + " --backend exakt", 1, ("no backend 'exakt', did you mean 'exact'?",)),
        (READ + " --set backend_options.divice=cpu", 1, ("'exact'", "'divice', did you mean 'device'?")),
        (READ + " --config nowhere.toml", 1, ("cannot read the configuration file", "nowhere.toml")),
        (READ + " --config {book}", 1, ("ends in .toml, .yaml, .yml, .json", "{book}")),
        (READ + " --config {typo_toml}", 1, ("{typo_toml}", "line 2, column 9")),
        (READ + " --config {field_toml}", 1, ("{field_toml}", "'windw', did you mean 'window'?")),
        (READ + " --config {type_yaml}", 1, ("{type_yaml}: sinks must be an integer, got '4' (str)",)),
        (READ + " --config {open_yaml}", 1, ("{open_yaml}", "line 2")),
        (READ + " --config {list_json}", 1, ("expected field names and values, got [1, 2]",)),
        # the demo
        ("demo --model {tiny} --tokens 100", 1, ("at least twice the window (2048)", "got 100")),
        ("demo --model {tiny} --tokens 300 --window 128 --facts 20", 1, ("must lie in 1..8, got 20",)),
        # evaluation and training
        (PPL + " --context 4096", 1, ("300 tokens, fewer than the longest context, 4,096",)),
        (PPL + " --context 40", 1, ("longer than the 50 tokens scored", "[40]")),
        (PPL + " --context 200 --way memroy", 1, ("no way of reading 'memroy'", "memory:BACKEND")),
        (PPL + " --context 200 --output {book}", 1, ("'{book}' is a file; name a folder",)),
        (PPL + " --context 200 --trained {folder}", 1, ("{folder} holds no trained weights",)),
        ("eval passkey {tiny} --output {folder} --tokens 300 --depth 50", 2, ("'--depth'", "1")),
        ("eval passkey {tiny} --output {folder} --tokens 300 --needles singel", 1, ("one of single", "'singel'")),
        ("eval icl {tiny} --output {folder}", 1, ("give labelled texts", "--data FILE")),
        ("eval icl {tiny} --output {folder} --data {book}", 1, ("a .csv or .tsv file", "{book}")),
        ("eval icl {tiny} --output {folder} --data {table_csv}", 1, ("no column label; it has text, kind",)),
        ("eval qa {tiny} --output {folder} --file {book} --questions {questions_jsonl}", 1, ("line 1", "answer")),
        ("train nowhere.toml", 1, ("cannot read the configuration file", "nowhere.toml")),
        ("train {nothing_toml}", 1, ("model is required; documents is required; output is required",)),
        ("train {rate_toml}", 1, ("unknown field 'learning_rate'", "the fields are")),
        ("train {steps_toml}", 1, ("stages[0]: 'steps' must be >= 1: 0",)),
        ("train {no_texts_toml}", 1, ("no file is named 'nowhere/*.txt'",)),
    ],
)
def test_a_mistake_on_the_command_line(desk: dict[str, str], command: str, code: int, says: tuple[str, ...]) -> None:
    _check(command, desk, code, says)


@needs_lmdb
@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize(
    ("command", "says"),
    [
        (READ + " --backend lmdb", ("backend_options of 'lmdb': path is required",)),
        (ASK + " --session book", ("'exact' forgets everything", "give --path FOLDER")),
        (ASK + " --session bok --path {memory}", ("no session 'bok', did you mean 'book'?; there are 'book'",)),
        (ASK + " --session book --path {folder}", ("there is no memory in {folder}",)),
        (ASK + " --session book --path {book}", ("cannot read a memory in {book}", "name its folder")),
        (FROM + " --window 128", ("made with window = 64 (int), not 128 (int)", "wrap the model with that")),
        (FROM + " --dtype bfloat16", ("'book' was made with model", "The dtype counts, too")),
        ("ingest {tiny} --session '' --path {memory} --file {book} " + SMALL, ("name must be", "got ''")),
        ("ingest {tiny} --session x --path {book} --file {book} " + SMALL, ("{book}", "name a folder")),
        ("ingest {tiny} --session x --path {book}/in --file {book} " + SMALL, ("{book}/in", "name a folder")),
        ("ingest {tiny} --session x --path {memory} --file {empty}", ("{empty} has no text in it",)),
        ("memory list {folder}", ("there is no memory in {folder}",)),
        (f"memory list {NOT_HERE}", (f"there is no memory at '{NOT_HERE}'",)),
        ("memory list {memory} --backend exact", ("backend 'exact' keeps nothing on disk",)),
        ("memory inspect {memory} bok", ("no session 'bok', did you mean 'book'?",)),
        ("memory copy {memory} book book", ("there is a session 'book' already", "choose another name")),
        ("memory drop {memory} bok --yes", ("no session 'bok'",)),
        ("memory salvage {memory} {memory}", ("{memory} is there already; name a new folder",)),
        ("memory compact {folder}", ("there is no memory in {folder}",)),
    ],
)
def test_a_mistake_with_a_memory_on_disk(desk: dict[str, str], command: str, says: tuple[str, ...]) -> None:
    _check(command, desk, 1, says)


@needs_lmdb
def test_nothing_is_dropped_without_a_yes(memory: str) -> None:
    asked = run("memory", "drop", memory, "book", stdin="n\n")
    assert asked.exit_code == 1
    assert "Delete session 'book' with 300 tokens?" in asked.stderr
    as_json = run("memory", "drop", memory, "book", "--json", stdin="")
    assert (as_json.exit_code, json.loads(as_json.stdout)["error"]["type"]) == (1, "Aborted")
    assert "book" in run("memory", "list", memory).stdout


def test_a_window_beyond_what_the_model_was_trained_for_is_a_warning_in_one_line(desk: dict[str, str]) -> None:
    words = _words(READ + " --window 100000 --max-new-tokens 1", desk)
    told = run(*words).stderr.splitlines()
    (warning,) = [line for line in told if line.startswith("warning: ")]
    assert "more than the 4096 that LlamaModel was trained for" in warning
    assert run(*words, "--quiet").stderr == ""


def wrapped(**fields: Any) -> Any:
    return memcore.wrap(tiny_model("llama"), **{**CONFIG, **fields})


def session(name: str = "book", tokenizer: Any = None, **fields: Any) -> memcore.Session:
    return memcore.Session(wrapped(**fields), name, tokenizer)


def unwrapped_under_a_session(tokenizer: Any) -> object:
    opened = session(tokenizer=tokenizer)
    opened.ingest("w1 w2")
    memcore.unwrap(opened.model)
    return opened.ask("w3")


def two_writers(path: str) -> object:
    first = wrapped(backend="lmdb", backend_options={"path": path})
    try:
        return wrapped(backend="lmdb", backend_options={"path": path})
    finally:
        memcore.unwrap(first)


def written_to_for_reading_only(path: str, tokenizer: Any) -> None:
    opened = session("book", tokenizer, backend="lmdb", backend_options={"path": path, "read_only": True})
    opened.ingest("w1")


Mistake = Callable[[Any, dict[str, str]], object]


@pytest.mark.parametrize(
    ("mistake", "kind", "says"),
    [
        # a model that is none, or has a memory already, or can have none
        (lambda _, __: memcore.wrap("gpt2"), memcore.UnsupportedModelError, "expected a transformers model, got.*str"),  # type: ignore[type-var]
        (lambda tok, _: memcore.wrap(tok), memcore.UnsupportedModelError, "expected a transformers model"),
        (lambda _, __: memcore.wrap(wrapped()), memcore.AlreadyWrappedError, "memcore.unwrap.model. takes it away"),
        (lambda _, __: memcore.unwrap(tiny_model("llama")), memcore.NotWrappedError, "no memory to take away"),
        (
            lambda _, __: memcore.wrap(BloomForCausalLM(BloomConfig(hidden_size=16, n_layer=1, n_head=2))),
            memcore.UnsupportedModelError,
            "BloomForCausalLM .*attention bypasses.*supported model types: .*llama",
        ),
        (
            lambda _, __: memcore.wrap(T5ForConditionalGeneration(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1))),
            memcore.UnsupportedModelError,
            "encoder-decoder; memory is for decoder-only",
        ),
        # a configuration
        (lambda _, __: wrapped(windw=64), memcore.ConfigError, "'windw', did you mean 'window'"),
        (lambda _, __: wrapped(window="64"), memcore.ConfigError, "window must be an integer.*got '64' .str."),
        (lambda _, __: memcore.MemoryConfig("lmdb"), memcore.ConfigError, "its fields by name.*got 'lmdb'"),  # type: ignore[call-arg]
        (lambda _, __: memcore.wrap(tiny_model("llama"), 3), memcore.ConfigError, "must be a MemoryConfig.*got 3"),  # type: ignore[arg-type]
        (lambda _, __: memcore.wrap(tiny_model("llama"), "lmdb"), memcore.ConfigError, "ends in .toml.*got 'lmdb'"),
        (lambda _, __: wrapped(backend_options="x"), memcore.ConfigError, "backend_options must be a mapping"),
        # caches, masks and what comes out
        (
            lambda _, __: wrapped()(
                input_ids=random_tokens(1, 9, seed=0),
                past_key_values=StaticCache(config=tiny_model("llama").config, max_cache_len=16),
            ),
            memcore.UnsupportedCacheError,
            "is a StaticCache.*an empty DynamicCache, model.memory.new_cache()",
        ),
        (
            lambda _, __: wrapped()(
                input_ids=random_tokens(1, 3, seed=0),
                past_key_values=wrapped()(input_ids=random_tokens(1, 3, seed=0)).past_key_values,
            ),
            memcore.UnsupportedCacheError,
            "another wrapped model; pass the one it returned",
        ),
        (
            lambda _, __: wrapped()(input_ids=random_tokens(1, 99, seed=0), output_attentions=True),
            memcore.UnsupportedInputError,
            "output_attentions is not available once the input is longer than the window",
        ),
        (
            lambda _, __: wrapped()(random_tokens(1, 99, seed=0), attention_mask=torch.ones(1, 1, 99, 99)),
            memcore.UnsupportedInputError,
            r"attention_mask must be \[B, tokens\].*got \[1, 1, 99, 99\]",
        ),
        # sessions and chats
        (lambda tok, _: memcore.Session(tiny_model("llama"), "x", tok), memcore.NotWrappedError, "memcore.wrap.model"),
        (lambda tok, _: memcore.Chat(tiny_model("llama"), tok), memcore.NotWrappedError, "memcore.wrap.model"),
        (lambda _, __: session(tokenizer="gpt2"), memcore.UnsupportedInputError, "AutoTokenizer.*got 'gpt2'"),
        (lambda _, __: session().ingest("w1 w2"), memcore.UnsupportedInputError, "without a tokenizer"),
        (lambda tok, _: session(3, tok), memcore.ConfigError, "name must be a text.*got 3"),  # type: ignore[arg-type]
        (lambda tok, _: session(tokenizer=tok).ask("w1"), memcore.SessionError, "read nothing yet; ingest something"),
        (lambda tok, _: session(tokenizer=tok).ingest(""), memcore.UnsupportedInputError, "the text is empty"),
        (
            lambda tok, desk: session(tokenizer=tok).ingest(desk["book"]),
            memcore.UnsupportedInputError,
            r"the name of a file; pathlib.Path\(",
        ),
        (
            lambda tok, _: session(tokenizer=tok).ingest(Path("nowhere.txt")),
            memcore.UnsupportedInputError,
            "cannot read 'nowhere.txt' as UTF-8 text: No such file",
        ),
        (lambda tok, _: unwrapped_under_a_session(tok), memcore.ClosedError, "closed.*wrap the model again"),
        (lambda tok, _: memcore.Chat(wrapped(), tok).say(" "), memcore.UnsupportedInputError, "nothing to reply to"),
        # what was trained
        (
            lambda _, desk: memcore.load_trained(tiny_model("llama"), desk["folder"]),
            memcore.TrainingError,
            "holds no trained weights, which are trained.safetensors and trained.json",
        ),
    ],
)
def test_a_mistake_in_python(desk: dict[str, str], mistake: Mistake, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says) as raised:
        mistake(AutoTokenizer.from_pretrained(desk["tiny"]), desk)
    assert isinstance(raised.value, memcore.MemcoreError)
    assert len(str(raised.value).splitlines()) == 1


@needs_lmdb
def test_a_memory_has_one_writer_and_those_who_only_read_write_nothing(desk: dict[str, str], memory: str) -> None:
    with pytest.raises(memcore.BackendError, match=r"open for writing already.*read_only=True"):
        two_writers(memory)
    with pytest.raises(memcore.ReadOnlyError, match="'book' cannot read on: its backend was opened read-only"):
        written_to_for_reading_only(memory, AutoTokenizer.from_pretrained(desk["tiny"]))


def test_a_text_of_windows_is_read_without_its_mark(tmp_path: Path, desk: dict[str, str]) -> None:
    (tmp_path / "text").write_bytes("\ufeffw7 w3\r\nw9".encode())
    marked = run("ask", desk["tiny"], "--file", str(tmp_path / "text"), "--question", "w1", "--max-new-tokens", "3")
    assert marked.exit_code == 0, marked.output
    assert "read 3 tokens" in marked.stderr
