"""``memcore serve`` and ``memcore inspect`` as they are used, and reports from the command line."""

from __future__ import annotations

import itertools
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from cli_runner import run
from openai import OpenAI
from page_blocks import ROOT, blocks
from page_commands import check_command, commands

pytest.importorskip("lmdb", reason="lmdb is not installed")

CONFIG = ("--window", "64", "--set", "chunk_size=8")


@pytest.fixture(scope="module")
def memory(tiny_folder: str, tmp_path_factory: Any) -> Path:
    """A memory with the sessions ``book`` and ``other``."""
    folder: Path = tmp_path_factory.mktemp("serving")
    (folder / "book.txt").write_text("w7 w3 w9 " * 60)
    for session in ("book", "other"):
        result = run("ingest", tiny_folder, "--session", session, "--path", str(folder / "memory"),
                     "--file", str(folder / "book.txt"), *CONFIG)  # fmt: skip
        assert result.exit_code == 0, result.output
    return folder / "memory"


@contextmanager
def started(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start a server in a process of its own, and give the address that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from memcore.cli import app; app()", *arguments, "--port", "0", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        told = json.loads("".join(itertools.takewhile(lambda line: line != "}\n", lines)) + "}")
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", told["address"])
        yield told["address"], process
    finally:
        process.kill()
        process.wait()


def get(address: str, path: str) -> Any:
    base, _, token = address.partition("/?token=")
    request = urllib.request.Request(base + path, headers={"authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def recorded(file: Path) -> Any:
    found = re.search(r'id="recorded">(.*?)</script>', file.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_what_docs_serve_md_says_can_be_done(
    tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("MODEL").symlink_to(tiny_folder)
    Path("novel.txt").write_text(" ".join(f"w{n * n % 90}" for n in range(2600)))
    page = blocks(ROOT / "docs" / "serve.md")
    (code,) = (block.text for block in page if block.language == "python")
    done: list[str] = []
    for words in (words for block in page if block.language in ("", "sh") for words in commands(block)):
        done.append(" ".join(words[:2]))
        if words[0] != "memcore" or words[1] in ("ingest", "ask") or "--html" in words:
            check_command(words)
        else:
            with started(*words[1:]) as (address, process):
                _under_way = {"serve": served, "inspect": inspected}[words[1]](address, code)
                process.send_signal(signal.SIGINT)
                _, errors = process.communicate(timeout=60)
                assert process.returncode == 0, errors
                assert "Traceback" not in errors
    assert (
        done
        == ["pip install", "memcore ingest", "memcore serve", "memcore inspect", "memcore inspect"]
        + ["memcore ask"] * 2
    )
    assert re.fullmatch(r".*(w\d+ ?)+.*", capsys.readouterr().out, flags=re.DOTALL)
    for report, exchanges in (("novel.html", 0), ("answer.html", 1)):
        (session,) = recorded(Path(report))["sessions"]
        assert len(session["exchanges"]) == exchanges


def served(address: str, code: str) -> object:
    """See that a server does what the page says, also once another process has read on, and leave a reply under way."""
    told = get(address, "/api/v1/memory")
    assert (told["model"], told["path"]) == ("MODEL", "memory")
    assert [each["name"] for each in told["sessions"]] == ["novel"]
    base, _, token = address.partition("/?token=")
    assert "http://127.0.0.1:8321/v1" in code
    exec(code.replace("http://127.0.0.1:8321", base), {"token": token})
    before = told["sessions"][0]["tokens"]
    check_command(["memcore", *["ingest", "MODEL", "--session", "novel", "--path", "memory", "--file", "novel.txt"]])
    assert get(address, "/api/v1/session?name=novel")["tokens"] == 2 * before
    client = OpenAI(base_url=f"{base}/v1", api_key=token)
    reply = client.chat.completions.create(
        model="MODEL/novel", max_tokens=1, messages=[{"role": "user", "content": "w1"}]
    )
    assert reply.usage is not None
    assert reply.usage.prompt_tokens_details is not None
    assert reply.usage.prompt_tokens_details.cached_tokens == 2 * before
    endless = client.chat.completions.create(
        model="MODEL", max_tokens=1_000_000, messages=[{"role": "user", "content": "w1"}], stream=True
    )
    next(iter(endless))
    return endless


def inspected(address: str, code: str) -> None:
    """See that sessions are shown as text without a model."""
    assert get(address, "/api/v1/memory")["model"] is None
    assert get(address, "/api/v1/session?name=novel")["tokenizer"] is True
    assert "w0 w1 w4 w9" in "".join(get(address, "/api/v1/text?name=novel")["pieces"])


def test_inspect_writes_a_report(memory: Path, tmp_path: Path) -> None:
    both, one = tmp_path / "both.html", tmp_path / "one.html"
    assert run("inspect", str(memory), "--html", str(both)).exit_code == 0
    told = run("inspect", str(memory), "other", "--html", str(one), "--json")
    assert json.loads(told.stdout) == {"path": str(memory), "written": str(one)}
    assert [each["session"]["name"] for each in recorded(both)["sessions"]] == ["book", "other"]
    assert [each["session"]["name"] for each in recorded(one)["sessions"]] == ["other"]


@pytest.mark.parametrize("of", ["session", "file"])
def test_ask_writes_a_report_of_its_questions(tiny_folder: str, memory: Path, tmp_path: Path, of: str) -> None:
    source = {
        "session": ("--session", "book", "--path", str(memory)),
        "file": ("--file", str(memory.parent / "book.txt")),
    }[of]
    common = ("ask", tiny_folder, *source, *CONFIG, "--question", "w4 w5", "--question", "w6", "--max-new-tokens", "3")
    plain = run(*common)
    result = run(*common, "--html", str(tmp_path / "report.html"), "--explain")
    assert result.exit_code == 0, result.output
    (session,) = recorded(tmp_path / "report.html")["sessions"]
    assert session["session"]["name"] == {"session": "book", "file": "book.txt"}[of]
    assert [each["question"] for each in session["exchanges"]] == ["w4 w5", "w6"]
    for exchange in session["exchanges"]:
        assert exchange["text"].strip() in plain.stdout
        assert [bool(token["passages"]) for token in exchange["tokens"]] == [True] * 3
    assert "w7 w3 w9" in "".join(session["pieces"])
    assert len(session["session"]["retrievals"]) > 5


def test_a_token_that_others_can_guess_and_none_at_all_are_refused(tiny_folder: str, memory: Path) -> None:
    for more, says in (
        (("--host", "0.0.0.0"), "choose what they must know with --token"),
        (("--token", "short"), "at least 16 ASCII characters"),
        (("--host", "192.0.2.1", "--token", "x" * 16), "cannot listen on 192.0.2.1"),
    ):
        result = run("inspect", str(memory), "--port", "0", *more)
        assert result.exit_code == 1
        assert says in result.stderr


def test_what_cannot_be_served_is_said(tiny_folder: str, memory: Path) -> None:
    assert "give --path FOLDER" in run("serve", tiny_folder).stderr
    assert "there is no session 'none'" in run("inspect", str(memory), "none", "--html", "x.html").stderr
    assert "no tokenizer 'nowhere'" in run("inspect", str(memory), "--port", "0", "--tokenizer", "nowhere").stderr


def test_a_port_that_is_taken_is_found_before_the_model_is_loaded(memory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for command in (("serve", "./none", "--path", str(memory)), ("inspect", str(memory))):
            result = run(*command, "--port", str(taken.getsockname()[1]))
            assert (result.exit_code, result.stdout) == (1, "")
            assert "choose another with --host or --port" in result.stderr


@pytest.mark.parametrize("package", ["uvicorn", "starlette"])
def test_a_package_that_serving_needs_is_missed_before_the_model_is_loaded(
    memory: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    for module in [
        name for name in sys.modules if name.partition(".")[0] == package or name == "memcore.serving.guard"
    ]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    result = run("serve", "./none", "--path", str(memory), "--port", "0")
    assert result.exit_code == 1
    assert 'serving needs starlette and uvicorn: pip install "memcore-llm[serve]"' in result.stderr


def test_an_answer_leaves_nothing_open(tiny_folder: str, memory: Path) -> None:
    asked = ("ask", tiny_folder, "--session", "book", "--path", str(memory), *CONFIG, "--question", "w1")
    assert run(*asked, "--max-new-tokens", "1").exit_code == 0
    assert [file.path for file in psutil.Process().open_files() if file.path.startswith(str(memory))] == []
