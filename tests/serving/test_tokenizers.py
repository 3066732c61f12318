"""A session's text is shown by the tokenizer that it was made with, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from character_tokenizer import character_tokenizer

from memcore.errors import UnsupportedModelError
from memcore.fingerprint import tokenizer_fingerprint
from memcore.serving.tokenizers import Tokenizers
from memcore.session_store import SessionInfo


@pytest.fixture
def folder(tmp_path: Path) -> str:
    character_tokenizer().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def info(model: str, fingerprint: str | None = None) -> SessionInfo:
    of = tokenizer_fingerprint(character_tokenizer()) if fingerprint is None else fingerprint
    return SessionInfo(name="book", model=model, tokenizer_fingerprint=of)


def test_it_is_found_where_the_model_was_or_given(folder: str) -> None:
    assert Tokenizers()(info(folder)) is not None
    assert Tokenizers(folder)(info("moved")) is not None
    given = character_tokenizer()
    assert Tokenizers(given)(info("moved")) is given


def test_another_one_is_not_taken_for_it(folder: str) -> None:
    assert Tokenizers()(info(folder, "0" * 16)) is None
    assert Tokenizers(folder)(info(folder, "0" * 16)) is None


def test_a_session_that_never_had_one_is_shown_as_ids(folder: str) -> None:
    assert Tokenizers(folder)(info(folder, "")) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"auto_map": {"AutoTokenizer": ["evil.Evil", null]}}'])
def test_whatever_a_memory_names_is_no_harm(tmp_path: Path, content: str) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(content)
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    for name in (str(tmp_path), str(tmp_path / "nowhere"), "", "..", "no/such/model"):
        assert Tokenizers()(info(name)) is None


def test_one_that_is_named_and_not_there_is_an_error() -> None:
    with pytest.raises(UnsupportedModelError, match="there is no tokenizer 'nowhere' on this machine"):
        Tokenizers("nowhere")
