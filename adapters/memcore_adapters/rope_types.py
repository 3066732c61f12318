"""The kinds of rotary frequencies in transformers: which memory can serve, and how two of them are made to hold still.

``dynamic`` and ``longrope`` change their frequencies once a text is longer than a certain length, so that keys of
before and after do not fit together. While a model has memory they are pinned to those for shorter texts. No query and
key are that far apart, for retrieved keys come back right before the window.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from memcore.config import MemoryConfig
from memcore.errors import ConfigError, UnsupportedModelError

_STEADY = ("default", "linear", "llama3", "yarn")
_PINNED = ("dynamic", "longrope")
_SAVED = "_memcore_pinned"


@attrs.frozen(kw_only=True)
class RopeType:
    """How the layers of one kind make their frequencies.

    Attributes:
        name: as transformers calls it.
        prefix: of the rotary module's buffers: the kind of layer, where it has frequencies for several.
        length: longest text, in tokens, that a pinned type has the same frequencies for; None if it is steady.
    """

    name: str
    prefix: str
    length: int | None


def rope_types(decoder: Any) -> Iterator[RopeType]:
    """Yield each rope type of a decoder.

    Raises:
        UnsupportedModelError: memory cannot serve one of them.
    """
    config = decoder.config
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = {kind: each for kind, each in parameters.items() if isinstance(each, dict)}
    for kind, each in (nested or {"": parameters}).items():
        name, length = each.get("rope_type", "default"), None
        if name == "dynamic":
            length = config.max_position_embeddings
        elif name == "longrope":
            length = each["original_max_position_embeddings"]
        elif name not in _STEADY:
            raise UnsupportedModelError(
                f"rope_type {name!r} of {type(decoder).__name__} is not one whose keys memory can move; "
                f"supported: {', '.join(_STEADY + _PINNED)}"
            )
        yield RopeType(name=name, prefix=f"{kind}_" if kind else "", length=length)


def trained_positions(decoder: Any) -> int | None:
    """Return the positions that rotations of this decoder are made for; None if it does not say."""
    lengths = [each.length for each in rope_types(decoder) if each.length is not None]
    return min(lengths, default=getattr(decoder.config, "max_position_embeddings", None))


def check_rope_types(decoder: Any, config: MemoryConfig) -> list[str]:
    """Check that memory can serve all rope types, and return what a user must know about them.

    Raises:
        UnsupportedModelError: it cannot.
        ConfigError: the configuration spans more positions than pinned frequencies are for.
    """
    length, name = trained_positions(decoder), type(decoder).__name__
    if length is None:
        return []
    pinned = next((each.name for each in rope_types(decoder) if each.length == length), None)
    notes = []
    if config.span > length:
        span = (
            f"window ({config.window_length}), sinks ({config.sinks}) and top_k × chunk_size ({config.chunks} × "
            f"{config.chunk_size}) span {config.span} positions"
        )
        if pinned is not None:
            raise ConfigError(
                f"{span}, but the frequencies of rope_type {pinned!r} are for {length} in this model: make them "
                f"{length} or less together"
            )
        notes.append(
            f"{span}, more than the {length} that {name} was trained for, so it may make no sense of what is far away: "
            f"make them {length} or less together"
        )
    if pinned is not None:
        notes.append(
            f"rope_type {pinned!r} of {name} has other frequencies for texts longer than {length} tokens; with memory "
            f"it keeps those for shorter texts, so beyond {length} tokens its logits differ, by design, from those of "
            "full attention"
        )
    return notes


def pin(decoder: Any) -> None:
    """Pin the frequencies that would change with the length of a text, to those of a text that is short enough."""
    saved: dict[str, Any] = {}
    for each in rope_types(decoder):
        if each.length is None:
            continue
        rotary = decoder.rotary_emb
        name, kept = f"{each.prefix}inv_freq", rotary.rope_type
        saved.setdefault("rope_type", kept)
        for attribute in (name, f"{each.prefix}max_seq_len_cached", "attention_scaling"):
            if hasattr(rotary, attribute):
                saved[attribute] = getattr(rotary, attribute)
        current = saved[name]
        setattr(rotary, name, getattr(rotary, f"{each.prefix}original_inv_freq").to(current, copy=True))
        # A "default" type is one that transformers never updates.
        rotary.rope_type = {**kept, each.prefix[:-1]: "default"} if isinstance(kept, dict) else "default"
    if saved:
        setattr(decoder.rotary_emb, _SAVED, saved)


def unpin(decoder: Any) -> None:
    """Undo :func:`pin`, down to what an earlier long text had left behind."""
    rotary = getattr(decoder, "rotary_emb", None)
    saved: dict[str, Any] = getattr(rotary, _SAVED, {})
    for attribute, value in saved.items():
        # The model may have moved in between.
        setattr(rotary, attribute, value.to(getattr(rotary, attribute)) if attribute.endswith("inv_freq") else value)
    if saved:
        delattr(rotary, _SAVED)
