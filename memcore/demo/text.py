"""A long text that every Python carries, and facts to hide in it."""

from __future__ import annotations

import bisect
import itertools
import random
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from memcore.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@attrs.frozen(kw_only=True)
class Fact:
    """Something that can be known only from the sentence that says it.

    Attributes:
        prompt: how the sentence begins, up to what is asked for. A model is asked by having to go on from here.
        answer: how it goes on.
        depth: where in the text the sentence stands, from 0, the beginning, to 1, the end.
    """

    prompt: str
    answer: str
    depth: float

    @property
    def sentence(self) -> str:
        """The whole sentence, as it is hidden."""
        return f"{self.prompt} {self.answer}."

    def is_answered_by(self, text: str) -> bool:
        """Whether a model that goes on with ``text`` knew the fact. It must begin with the answer."""
        return re.match(rf"{re.escape(self.answer)}\b", text.lstrip(), re.IGNORECASE) is not None


# Each says something of its own: many pass-keys of one form would test the choice among them, not memory.
_SUBJECTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("The access code of the blue door is", ("48213", "70594", "29361", "83507")),
    ("Captain Mirabel keeps the spare rudder in", ("Lisbon", "Bergen", "Odessa", "Cardiff")),
    ("Doctor Halloway's parrot is called", ("Bartholomew", "Clementine", "Montgomery", "Josephine")),
    ("The secret ingredient of Aunt Rosalind's soup is", ("nutmeg", "licorice", "seaweed", "rhubarb")),
    ("The treasure of Port Selwyn is buried under the", ("windmill", "chapel", "bakery", "lighthouse")),
    ("The night train to Kestrel Bay leaves from platform", ("17", "23", "31", "46")),
    ("The Brindle Cup was won by a horse named", ("Thunderbolt", "Marmalade", "Silverfox", "Peppercorn")),
    ("Professor Okonjo wrote her letters in", ("Icelandic", "Swahili", "Portuguese", "Hungarian")),
)


def language_reference() -> str:
    """Return the Python language reference as one text of some 450,000 characters, about 113,000 Gemma tokens."""
    from pydoc_data.topics import topics

    return "\n\n".join(text.strip() for _, text in sorted(topics.items())) + "\n"


def choose_facts(count: int, seed: int, *, until: float = 1.0) -> list[Fact]:
    """Return facts at even depths, the same ones for the same seed.

    Args:
        count: how many, at most as many as there are subjects (8).
        seed: which ones, with which answers, in which order.
        until: the depth they stay above.
    """
    if not 1 <= count <= len(_SUBJECTS):
        raise ConfigError(f"the number of facts must lie in 1..{len(_SUBJECTS)}, got {count}")
    chance = random.Random(seed)
    subjects = chance.sample(_SUBJECTS, count)
    return [
        Fact(prompt=prompt, answer=chance.choice(answers), depth=(index + 0.5) / count * until)
        for index, (prompt, answers) in enumerate(subjects)
    ]


def hide(facts: Sequence[Fact], text: str) -> str:
    """Return the text with each fact as a paragraph of its own, at the last paragraph boundary before its depth."""
    paragraphs = text.split("\n\n")
    ends = list(itertools.accumulate(len(paragraph) + 2 for paragraph in paragraphs))  # in characters
    places = [bisect.bisect(ends, fact.depth * ends[-1]) for fact in facts]
    # From the back, so that the places of those before stay right.
    for place, fact in sorted(zip(places, facts, strict=True), key=lambda pair: pair[0], reverse=True):
        paragraphs.insert(place, fact.sentence)
    return "\n\n".join(paragraphs)


def first_tokens(text: str, tokens: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the beginning of a text that is ``tokens`` long, cut back to the end of a paragraph.

    Args:
        text: the text.
        tokens: the most tokens it may have.
        tokenizer: a fast tokenizer, which knows where in the text each token begins.
    """
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    if tokens >= len(offsets):
        return text
    cut = text[: offsets[tokens][0]]
    return cut[:end] if (end := cut.rfind("\n\n")) > 0 else cut
