"""The demo's text: facts are hidden where they are said to be, and nothing else changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcore.demo.text import Fact, choose_facts, hide, language_reference
from memcore.errors import ConfigError


def test_the_text_is_long_and_the_same_every_time() -> None:
    assert len(language_reference()) > 300_000
    assert language_reference() == language_reference()


def test_no_answer_stands_in_the_text_already() -> None:
    text = language_reference().lower()
    for seed in range(20):
        for fact in choose_facts(8, seed):
            assert fact.prompt.lower() not in text


@given(seed=st.integers(0, 1000), count=st.integers(1, 8))
def test_facts_are_different_and_reproducible(seed: int, count: int) -> None:
    facts = choose_facts(count, seed)
    assert facts == choose_facts(count, seed)
    assert len({fact.prompt for fact in facts}) == count
    assert [fact.depth for fact in facts] == sorted(fact.depth for fact in facts)


def test_facts_stay_above_a_depth() -> None:
    assert max(fact.depth for fact in choose_facts(8, 0, until=0.5)) < 0.5


def test_too_many_facts_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"1\.\.8, got 9"):
        choose_facts(9, 0)


@given(seed=st.integers(0, 1000), count=st.integers(1, 8), paragraphs=st.integers(1, 60))
def test_hiding_adds_the_sentences_and_nothing_else(seed: int, count: int, paragraphs: int) -> None:
    text = "\n\n".join(f"Paragraph {number} of the text." for number in range(paragraphs))
    facts = choose_facts(count, seed)
    hidden = hide(facts, text)
    for fact in facts:
        assert hidden.count(fact.sentence) == 1
        hidden = hidden.replace(f"{fact.sentence}\n\n", "", 1)
    assert hidden == text


def test_a_fact_stands_at_its_depth() -> None:
    text = language_reference()
    for fact in choose_facts(8, 0):
        position = hide([fact], text).index(fact.sentence)
        assert position / len(text) == pytest.approx(fact.depth, abs=0.02)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (" Lisbon.", True),
        (" lisbon, where", True),
        (" Lisbonne.", False),
        (" Bergen, not Lisbon.", False),
        (" a box.\nLisbon.", False),
        ("", False),
    ],
)
def test_only_an_answer_that_begins_right_is_right(answer: str, right: bool) -> None:
    fact = Fact(prompt="Captain Mirabel keeps the spare rudder in", answer="Lisbon", depth=0.5)
    assert fact.is_answered_by(answer) == right
