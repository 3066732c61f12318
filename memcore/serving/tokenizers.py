"""Tokenizers of sessions, as far as they are to be had without a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memcore.errors import UnsupportedModelError
from memcore.fingerprint import tokenizer_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from memcore.session_store import SessionInfo


class Tokenizers:
    """Finds the tokenizer that a session was made with: the one that is given, or that of the session's model.

    Args:
        given: a tokenizer, or the hub id or folder of one; empty for none.

    Raises:
        UnsupportedModelError: there is none of that name on this machine.
    """

    def __init__(self, given: PreTrainedTokenizerBase | str = "") -> None:
        self._known: dict[str, PreTrainedTokenizerBase] = {}  # by fingerprint
        self._tried: set[str] = set()
        if not isinstance(given, str):
            self._known[tokenizer_fingerprint(given)] = given
        elif given and not self._load(given):
            raise UnsupportedModelError(f"there is no tokenizer {given!r} on this machine")

    def __call__(self, info: SessionInfo) -> PreTrainedTokenizerBase | None:
        """Return a session's tokenizer, None if it is not on this machine, or the session never had one."""
        if info.tokenizer_fingerprint not in self._known and info.model not in self._tried:
            self._load(info.model)
        return self._known.get(info.tokenizer_fingerprint)

    def _load(self, name: str) -> bool:
        from transformers import AutoTokenizer

        self._tried.add(name)
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False)
        except Exception:  # it is not there, or no tokenizer: what a memory names may be anything
            return False
        self._known[tokenizer_fingerprint(tokenizer)] = tokenizer
        return True
