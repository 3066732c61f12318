"""The forward of a decoder with memory: a long input goes through the model's own forward piece by piece."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from memcore.cache import MemoryCache
from memcore.cache_argument import NEW, OLD, cache_argument
from memcore.chunk import UNKNOWN_TOKEN
from memcore.errors import UnsupportedInputError
from memcore.memory import Memory
from memcore.rotary import RotaryGeometry
from memcore.schedule import pieces
from memcore.window import Columns
from memcore_adapters.checkpointing import checkpointing
from memcore_adapters.interface import CACHE_ARGUMENT


def make_forward(
    decoder_class: type,
    check_call: Callable[[Any, dict[str, Any]], None],
    geometry: Callable[[Any, int], RotaryGeometry | None],
) -> Callable[..., Any]:
    """Return the forward that replaces the one of a decoder of this class, same signature.

    Args:
        decoder_class: its class.
        check_call: refuses calls that the family cannot serve, by decoder and arguments.
        geometry: how a layer rotates its keys now, by decoder and index.
    """
    inner = decoder_class.forward  # type: ignore[attr-defined]
    parameters = list(inspect.signature(inner).parameters)[1:]
    renamed = cache_argument(inner) == NEW

    @functools.wraps(inner)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.update(zip(parameters, args, strict=False))
        own = self._memcore_inner
        inside = functools.partial(inner, self) if own is None else own
        if renamed:
            given = kwargs.pop(NEW, None)
            kwargs[OLD] = kwargs.get(OLD) if given is None else given
            inside = functools.partial(_under_the_new_name, inside)
        check_call(self, kwargs)
        return forward_with_memory(inside, self, kwargs, functools.partial(geometry, self))

    # What is attended to is decided in Python, anew for each piece: traced, it would mean a new graph every few tokens,
    # which takes longer than it saves. What a model does outside of its decoder is compiled all the same, and so are
    # parts of layers that are compiled one by one (layer.mlp.compile()).
    uncompiled: Callable[..., Any] = torch.compiler.disable(forward)
    return uncompiled


def _under_the_new_name(inner: Callable[..., Any], **kwargs: Any) -> Any:
    return inner(**{NEW if name == OLD else name: value for name, value in kwargs.items()})


def forward_with_memory(
    inner: Callable[..., Any],
    decoder: Any,
    kwargs: dict[str, Any],
    geometry: Callable[[int], RotaryGeometry | None],
) -> Any:
    """Run a decoder's forward with its memory.

    Args:
        inner: the forward that the decoder had before.
        decoder: the wrapped decoder.
        kwargs: the call's arguments, by name.
        geometry: how a layer rotates its keys now, by index.

    Raises:
        UnsupportedInputError: the call combines arguments that memory cannot serve.
        UnsupportedCacheError: memory cannot live in the ``past_key_values`` given.
    """
    memory: Memory = decoder._memcore_memory
    source = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
    if source is None or (kwargs.get("input_ids") is not None and kwargs.get("inputs_embeds") is not None):
        return inner(**kwargs)  # transformers has a message for this
    tokens = source.shape[1]
    room = memory.config.room
    given = kwargs.pop("past_key_values", None)
    keep_cache = _use_cache(decoder, kwargs)
    if given is None and not keep_cache and tokens <= room:
        return inner(**kwargs)  # nothing can leave the window, and nobody wants a cache
    cache = memory.new_cache() if given is None else MemoryCache.adopt(given, memory)
    if cache.window is None:
        # A cast (model.half()) rounds the frequencies as well, and keys must turn back by those that turned them.
        memory.rotate_by({setup.index: geometry(setup.index) for setup in memory.layer_setups})
    memory.used(cache)
    seen = cache.seen
    new = _columns(source, kwargs.get("attention_mask"), kwargs.get("position_ids"), seen)
    # Nothing is asked in a training step, and every piece costs a copy of the window's keys and values until backward.
    question = 0 if decoder.training and torch.is_grad_enabled() else memory.question_tokens
    cut = pieces(tokens, seen, room=room, segment=memory.config.segment_length, question_tokens=question)
    spans = list(cut)
    if seen + tokens > room:
        _check(kwargs, decoder)
    with checkpointing(decoder, cache) as use_cache:
        kwargs["use_cache"] = use_cache
        if len(spans) == 1:
            output = _run(inner, cache, kwargs, new, decode=tokens == 1)
        else:
            output = _run_pieces(inner, cache, memory, kwargs, new, spans)
    if not keep_cache and (name := next((name for name in (NEW, OLD) if hasattr(output, name)), None)):
        setattr(output, name, given)
    return output


def _run(inner: Callable[..., Any], cache: MemoryCache, kwargs: dict[str, Any], new: Columns, *, decode: bool) -> Any:
    cache.begin(new, decode=decode)
    output = inner(**{**kwargs, "past_key_values": cache, CACHE_ARGUMENT: cache})
    cache.finish()
    return output


def _run_pieces(
    inner: Callable[..., Any],
    cache: MemoryCache,
    memory: Memory,
    kwargs: dict[str, Any],
    new: Columns,
    spans: list[tuple[int, int]],
) -> Any:
    seen, tokens = cache.seen, len(new)
    return_dict = kwargs.pop("return_dict", None)
    mask = kwargs.get("attention_mask")
    positions = kwargs.get("position_ids")
    outputs = []
    for begin, end in spans:
        piece = dict(kwargs, return_dict=True)
        for name in ("input_ids", "inputs_embeds"):
            if piece.get(name) is not None:
                piece[name] = piece[name][:, begin:end]
        if mask is not None:
            piece["attention_mask"] = mask[:, : seen + end]
        if positions is not None:
            piece["position_ids"] = positions[..., begin:end]
        outputs.append(_run(inner, cache, piece, new.span(begin, end), decode=False))
        if memory.progress is not None:
            memory.progress(end, tokens)
    joined = _join(outputs)
    return joined.to_tuple() if return_dict is False else joined


def _join(outputs: list[Any]) -> Any:
    """Join the outputs of consecutive pieces along the token axis.

    Raises:
        UnsupportedInputError: an output was asked for of which it is not known how it is joined.
    """
    joined = outputs[-1]
    batch = joined.last_hidden_state.shape[0]
    for name, value in list(joined.items()):
        if name in (OLD, NEW) or value is None:
            continue
        parts = [each[name] for each in outputs]
        if name == "last_hidden_state":
            joined[name] = torch.cat(parts, dim=1)
        elif name == "hidden_states":
            joined[name] = tuple(
                None if layer[0] is None else torch.cat(layer, dim=1) for layer in zip(*parts, strict=True)
            )
        elif name == "router_logits":  # [B * T, experts] each
            joined[name] = tuple(
                torch.cat([part.unflatten(0, (batch, -1)) for part in layer], dim=1).flatten(0, 1)
                for layer in zip(*parts, strict=True)
            )
        else:
            raise UnsupportedInputError(f"{name} is not available once the input is longer than the window")
    return joined


def _use_cache(decoder: Any, kwargs: dict[str, Any]) -> bool:
    wanted = kwargs.get("use_cache")
    wanted = getattr(decoder.config, "use_cache", False) if wanted is None else wanted
    return bool(wanted) and not (getattr(decoder, "gradient_checkpointing", False) and decoder.training)


def _columns(source: Tensor, mask: Any, position_ids: Tensor | None, seen: int) -> Columns:
    """Say what the new columns are: ``source`` is ``[B, T]`` token ids or ``[B, T, hidden]`` embeddings."""
    batch, tokens = source.shape[:2]
    if isinstance(mask, Tensor) and mask.ndim == 2:
        if mask.shape[1] != seen + tokens:
            raise UnsupportedInputError(
                f"attention_mask must cover the {seen} tokens seen and the {tokens} new ones, [{batch}, "
                f"{seen + tokens}]; got {list(mask.shape)}"
            )
        live = mask[:, seen:].cpu() != 0
    else:
        live = torch.ones(batch, tokens, dtype=torch.bool)
    if position_ids is None:
        position_ids = torch.arange(seen, seen + tokens)[None]
    if position_ids.ndim != 2:
        raise UnsupportedInputError(f"position_ids must be [B, T], got {list(position_ids.shape)}")
    token_ids = source if source.ndim == 2 else torch.full((batch, tokens), UNKNOWN_TOKEN)
    return Columns(
        live=live,
        positions=position_ids.detach().cpu().long().expand(batch, tokens),
        token_ids=token_ids.detach().cpu().long(),
    )


def _check(kwargs: dict[str, Any], decoder: Any) -> None:
    """Refuse what has no meaning once tokens have left the window."""
    mask = kwargs.get("attention_mask")
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
        shape = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise UnsupportedInputError(
            f"attention_mask must be [B, tokens] once the input is longer than the window; got {shape}"
        )
    wanted = kwargs.get("output_attentions")
    if getattr(decoder.config, "output_attentions", False) if wanted is None else wanted:
        raise UnsupportedInputError(
            "output_attentions is not available once the input is longer than the window: "
            "weights over a changing memory have no common shape"
        )
