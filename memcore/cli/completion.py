"""What the shell can complete: names of what plugins offer, and other words from a list.

Nothing here imports torch: a completion that takes a second is not used. So names of sessions are not completed; a
memory on disk cannot be read without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from memcore.component_check import Kind

Completion = Callable[[str], Iterable[tuple[str, str]]]
"""Takes what was typed so far and gives words with a line on each."""

DEVICES: Final = {
    "cpu": "",
    "cuda": "an NVIDIA GPU, or AMD's with ROCm",
    "cuda:0": "the first of them",
    "mps": "Apple's",
}
DTYPES: Final = {"auto": "the checkpoint's own", "float32": "", "bfloat16": "", "float16": ""}


def components(kind: Kind) -> Completion:
    """Return what completes the names of components, those that can be used here."""

    def complete(incomplete: str) -> Iterable[tuple[str, str]]:
        from memcore.plugins import registry

        offers = registry().components(kind).items()
        return _beginning(incomplete, {name: offer.component.summary for name, offer in offers if not offer.missing()})

    return complete


def words(known: dict[str, str]) -> Completion:
    """Return what completes one of these words."""

    def complete(incomplete: str) -> Iterable[tuple[str, str]]:
        return _beginning(incomplete, known)

    return complete


def _beginning(typed: str, known: dict[str, str]) -> list[tuple[str, str]]:
    return [(word, help_) for word, help_ in known.items() if word.startswith(typed)]
