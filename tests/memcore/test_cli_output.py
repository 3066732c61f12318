from __future__ import annotations

import os
import subprocess
import sys

import pytest

from memcore.cli.output import console


def test_an_answer_is_shown_as_it_is() -> None:
    with console.capture() as shown:
        console.print("memcore-llm[all] :smile: 3.14")
    assert shown.get() == "memcore-llm[all] :smile: 3.14\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("model", "quiet", "shown"), [("owner/name", False, True), ("owner/name", True, False), (".", False, False)]
)
def test_what_is_downloaded_has_bars_on_a_terminal_where_notes_are_shown(model: str, quiet: bool, shown: bool) -> None:
    import pty
    import termios

    code = (
        "from memcore.cli.output import loading, notes\n"
        f"notes.quiet = {quiet}\n"
        f"with loading({model!r}):\n"
        "    from huggingface_hub.utils import tqdm\n"
        "    for _ in tqdm(range(3), desc='weights'): pass\n"
    )
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, 100))
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    told = b""
    try:
        while piece := os.read(ours, 4096):
            told += piece
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(ours)
    assert process.wait() == 0, told.decode()
    assert (b"weights: 100%" in told) is shown
    assert (b"downloaded the first time" in told) is shown
