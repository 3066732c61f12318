"""The passages that an answer read from memory, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from memcore.cli.output import console

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from memcore.memory import Passage


def show_passages(passages: Iterable[Passage], tokenizer: PreTrainedTokenizerBase) -> None:
    """Print each passage in a line: its position, the layers that read it, its text."""
    for each in as_values(passages, tokenizer):
        where = f"  [{each['start']:,}, layers {', '.join(map(str, each['layers']))}]"
        console.print(f"{where} {' '.join(each['text'].split())}", style="dim", soft_wrap=True)


def as_values(passages: Iterable[Passage], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Return ``start``, ``layers`` and ``text`` of each passage."""
    return [
        {
            "start": passage.start,
            "layers": list(passage.layers),
            "text": str(tokenizer.decode(passage.token_ids.clamp_min(0))),
        }
        for passage in passages
    ]
