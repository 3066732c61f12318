from __future__ import annotations

import os
import sys

import pytest
from pseudo_terminal import shown_on_a_terminal

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
    code = (
        "from memcore.cli.output import loading, notes\n"
        f"notes.quiet = {quiet}\n"
        f"with loading({model!r}):\n"
        "    from huggingface_hub.utils import tqdm\n"
        "    for _ in tqdm(range(3), desc='weights'): pass\n"
    )
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    exit_code, told = shown_on_a_terminal([sys.executable, "-c", code], env)
    assert exit_code == 0, told.decode()
    assert (b"weights: 100%" in told) is shown
    assert (b"downloaded the first time" in told) is shown
