"""What a session can only be used with: the model, tokenizer and configuration that it was made with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from memcore.config import MemoryConfig
from memcore.errors import SessionMismatchError
from memcore.fingerprint import model_fingerprint, tokenizer_fingerprint
from memcore.options import describe
from memcore.session_store import SessionInfo, check_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BINDING: Final = (
    "window",
    "sinks",
    "chunk_size",
    "query_tokens",
    "embedder",
    "embedder_options",
    "layers",
    "memory_layer",
)
"""Fields of the configuration that what is stored depends on."""


def bound_to(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, config: MemoryConfig
) -> SessionInfo:
    """Return a session that has read nothing yet.

    Args:
        name: any text that is not empty.
        model: that reads.
        tokenizer: the model's, if there is one.
        config: of the model's memory.
    """
    return SessionInfo(
        name=check_name(name),
        model=str(getattr(model.config, "_name_or_path", "")),
        model_fingerprint=model_fingerprint(model),
        tokenizer_fingerprint="" if tokenizer is None else tokenizer_fingerprint(tokenizer),
        config={field: _plain(getattr(config, field)) for field in _BINDING},
    )


def check_same(was: SessionInfo, made: SessionInfo) -> None:
    """Refuse a model, tokenizer or configuration that a session was not made with.

    Args:
        was: what it was made with.
        made: what :func:`bound_to` says of those that it is to be used with.

    Raises:
        SessionMismatchError: they differ; the message says in what.
    """
    name = was.name
    if was.model_fingerprint != made.model_fingerprint:
        raise SessionMismatchError(
            f"session {name!r} was made with model {was.model!r} (fingerprint {was.model_fingerprint}), not with "
            f"{made.model!r} ({made.model_fingerprint}): its keys and values would mean nothing to this one. "
            "The dtype counts, too"
        )
    if was.tokenizer_fingerprint and made.tokenizer_fingerprint not in ("", was.tokenizer_fingerprint):
        raise SessionMismatchError(
            f"session {name!r} was made with another tokenizer (fingerprint {was.tokenizer_fingerprint}, not "
            f"{made.tokenizer_fingerprint}): take the one that belongs to {was.model!r}"
        )
    differ = [
        f"{field} = {describe(was.config.get(field))}, not {describe(value)}"
        for field, value in made.config.items()
        if was.config.get(field) != value
    ]
    if differ:
        raise SessionMismatchError(f"session {name!r} was made with {'; '.join(differ)}: wrap the model with that")


def _plain(value: object) -> object:
    """Return a value as a JSON file gives it back."""
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return {key: _plain(each) for key, each in value.items()} if isinstance(value, dict) else value
