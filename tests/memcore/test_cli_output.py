from __future__ import annotations

from memcore.cli.output import console


def test_an_answer_is_shown_as_it_is() -> None:
    with console.capture() as shown:
        console.print("memcore-llm[all] :smile: 3.14")
    assert shown.get() == "memcore-llm[all] :smile: 3.14\n"
