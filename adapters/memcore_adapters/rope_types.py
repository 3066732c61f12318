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


def check_rope_types(decoder: Any, config: MemoryConfig) -> str | None:
    """Check that memory can serve all rope types, and return what a user must know about them, if anything.

    Raises:
        UnsupportedModelError: it cannot.
        ConfigError: the configuration spans more positions than pinned frequencies are for.
    """
    pinned = [each for each in rope_types(decoder) if each.length is not None]
    if not pinned:
        return None
    name, length = min(((each.name, each.length or 0) for each in pinned), key=lambda pair: pair[1])
    span = config.window + config.sinks + config.top_k * config.chunk_size
    if span > length:
        raise ConfigError(
            f"window ({config.window}), sinks ({config.sinks}) and top_k × chunk_size ({config.top_k} × "
            f"{config.chunk_size}) span {span} positions, but the frequencies of rope_type {name!r} are for {length} "
            f"in this model: make them {length} or less together"
        )
    return (
        f"rope_type {name!r} of {type(decoder).__name__} has other frequencies for texts longer than {length} tokens; "
        f"with memory it keeps those for shorter texts, so beyond {length} tokens its logits differ, by design, from "
        "those of full attention"
    )


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
