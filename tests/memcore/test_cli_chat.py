"""``memcore chat`` as it is used: lines in, replies out; interrupted; with a session; on a terminal."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from character_tokenizer import character_tokenizer
from cli_runner import run
from pseudo_terminal import shown_on_a_terminal
from tiny_models import tiny_model

import memcore
from memcore import Chat
from memcore.cli.chat import interrupts_end_the_reply

LINES = "w1 w2 w3\n\nw4 w5\n"
SMALL = ("--window", "128", "--max-new-tokens", "5")


def chat(folder: str, *more: str, stdin: str = LINES) -> Any:
    return run("chat", folder, *SMALL, *more, stdin=stdin)


def in_session(folder: str, path: Path, *more: str, stdin: str = LINES) -> Any:
    pytest.importorskip("lmdb", reason="lmdb is not installed")
    return chat(folder, "--session", "anna", "--path", str(path), *more, stdin=stdin)


def test_every_line_has_a_reply_and_nothing_else_is_printed(tiny_folder: str) -> None:
    result = chat(tiny_folder)
    assert result.exit_code == 0, result.output
    assert [len(line.split()) for line in result.stdout.splitlines()] == [5, 5]
    assert result.stderr == ""


def test_nothing_said_is_nothing_printed(tiny_folder: str) -> None:
    result = chat(tiny_folder, stdin="")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_exit_ends_it(tiny_folder: str) -> None:
    assert len(chat(tiny_folder, stdin="w1\n/exit\nw2\n").stdout.splitlines()) == 1


def test_an_unknown_command_is_named_and_not_said(tiny_folder: str) -> None:
    result = chat(tiny_folder, stdin="/mood\nw1\n")
    assert result.stdout == chat(tiny_folder, stdin="w1\n").stdout
    assert "there is no /mood" in result.stderr


def test_memory_tells_how_much_was_said_and_which_passages_were_read(tiny_folder: str) -> None:
    said = " ".join(f"w{n % 60}" for n in range(150))
    result = chat(tiny_folder, stdin=f"/memory\nw1 w2\n/memory\n{said}\n/memory\n")
    assert "0 tokens were said" in result.stdout
    assert "no reply yet" in result.stdout
    assert "all was still in the window" in result.stdout
    assert re.search(r"1[67]\d tokens were said and read. The window holds the last 128", result.stdout)
    assert re.search(r"read \d passages from the memory:\n  \[\d+, layers [01, ]+\] .*w\d", result.stdout)


def test_a_session_goes_on_where_it_ended(tiny_folder: str, tmp_path: Path) -> None:
    whole = chat(tiny_folder, "--system", "w9", stdin="w1\nw2\nw3\n")
    first = in_session(tiny_folder, tmp_path, "--system", "w9", stdin="w1\nw2\n")
    second = in_session(tiny_folder, tmp_path, "--system", "w9", stdin="w3\n")
    assert first.stdout + second.stdout == whole.stdout, second.output
    other = in_session(tiny_folder, tmp_path, "--system", "w8")
    assert (other.exit_code, other.stdout) == (1, "")
    assert "leave `system` out" in other.stderr


def test_a_file_is_read_once_in_a_session(tiny_folder: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("w7 w8 w9 " * 100)
    arguments = (tiny_folder, tmp_path / "memory", "--file", str(tmp_path / "text"))
    assert "tokens were said" in in_session(*arguments, stdin="/memory\nw1\n").stdout
    again = in_session(*arguments, stdin="/memory\n").stdout
    assert re.match(r"3\d\d tokens were said", again)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--file", "nowhere"], "cannot read 'nowhere' as UTF-8 text"),
        (["--session", "anna"], "give --path FOLDER"),
        (["--window", "10"], "window (10) must hold at least one chunk"),
    ],
)
def test_a_mistake_gets_one_line(tiny_folder: str, more: list[str], says: str) -> None:
    result = chat(tiny_folder, *more)
    assert (result.exit_code, result.stdout) == (1, "")
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_temperature_samples_by_the_seed(tiny_folder: str) -> None:
    heard = [chat(tiny_folder, "--temperature", "3", "--seed", seed).stdout for seed in ("0", "0", "1")]
    assert heard[0] == heard[1] != heard[2]


def test_the_first_interrupt_ends_the_reply_and_the_second_the_turn() -> None:
    talk = Chat(memcore.wrap(tiny_model("llama")), character_tokenizer())
    before = signal.getsignal(signal.SIGINT)
    with interrupts_end_the_reply(talk):
        reply = talk.say("Hi", on_text=lambda _: signal.raise_signal(signal.SIGINT), max_new_tokens=1)
    assert len(reply.token_ids) == 1
    heard: list[str] = []

    def press_twice(piece: str) -> None:
        heard.append(piece)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    ids = talk.token_ids()
    with pytest.raises(KeyboardInterrupt), interrupts_end_the_reply(talk):
        talk.say("Go on", on_text=press_twice, max_new_tokens=9)
    assert len(heard) == 1
    assert talk.token_ids().equal(ids)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.timeout(60)
def test_on_a_terminal_it_says_what_can_be_done_and_prompts(tiny_folder: str) -> None:
    command = [sys.executable, "-c", "from memcore.cli import app; app()", "chat", tiny_folder, *SMALL]
    code, shown = shown_on_a_terminal(command, {**os.environ, "TERM": "dumb"}, typed=b"w1 w2\n/exit\n")
    assert code == 0, shown.decode()
    assert b"/exit or Ctrl-D leaves" in shown
    assert shown.count(b"> ") == 2
