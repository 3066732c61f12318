"""What memcore relies on in transformers, as checks that say what has changed, where it matters, and what to do.

Each check takes what it looks at, so that a test can hand it something changed and read the message.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import attrs
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.masking_utils import causal_mask_function

from memcore.cache_argument import NEW, OLD, cache_argument

INTERFACE = "adapters/memcore_adapters/interface.py"
FORWARD = "adapters/memcore_adapters/forward.py"
DELEGATE = "adapters/memcore_adapters/delegate.py"
LAYER = "memcore/memory_layer.py"
CACHE = "memcore/cache.py"
READER = "memcore/reader.py"


class ContractError(AssertionError):
    """Something in transformers is no longer as memcore needs it."""

    def __init__(self, what: str, where: str, advice: str) -> None:
        super().__init__(
            f"transformers {transformers.__version__}: {what}\n  needed by: {where}\n  what to do: {advice}"
        )


@attrs.frozen(eq=False, kw_only=True)
class Call:
    """A call of a registered attention function.

    Attributes:
        module: the attention module.
        query: ``[B, Hq, T, D]``.
        key: ``[B, H, S, D]``.
        value: ``[B, H, S, Dv]``.
        mask: of any kind.
        kwargs: the rest.
    """

    module: Any
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Any
    kwargs: dict[str, Any]


def check_parameters(function: Callable[..., Any], names: list[str], where: str, advice: str) -> None:
    """Check that a function still takes these parameters, by position in this order."""
    takes = [name for name in inspect.signature(function).parameters if name != "self"]
    if takes[: len(names)] != names:
        name = getattr(function, "__qualname__", repr(function))
        raise ContractError(f"{name} takes ({', '.join(takes)}), no longer ({', '.join(names)}, ...)", where, advice)


def check_cache_argument(function: Callable[..., Any]) -> None:
    """Check that a forward, or ``generate()``, takes its cache by a name that memcore knows."""
    takes = list(inspect.signature(function).parameters)
    if cache_argument(function) not in takes:
        raise ContractError(
            f"{getattr(function, '__qualname__', repr(function))} takes ({', '.join(takes)}): neither {OLD} nor {NEW}",
            "memcore/cache_argument.py",
            "add the new name there; forward.py, checkpointing.py and stablelm.py of the adapters look for it, too",
        )


def check_registry(registry: Any, name: str) -> None:
    """Check that what is registered under a name is found under it."""

    def function() -> None: ...

    advice = "adapt register(), and how a Delegate finds the function it stands in front of"
    try:
        type(registry).register(name, function)
        found = registry.get_interface(name, None) if hasattr(registry, "get_interface") else registry[name]
    except Exception as error:
        what = f"{type(registry).__name__}.register(name, function) and look-up by name fail: {error!r}"
        raise ContractError(what, f"{INTERFACE}, {DELEGATE}", advice) from error
    if found is not function:
        what = f"{type(registry).__name__} gives {found!r} for a name that a function was registered under"
        raise ContractError(what, f"{INTERFACE}, {DELEGATE}", advice)


def check_mask_function(function: Callable[..., Any], *, additive: bool) -> None:
    """Check how a mask function is called and what it gives: where a query sees a key, or what to add to its logit."""
    advice = (
        "compare how transformers' masking_utils calls what is registered with AttentionMaskInterface; memcore "
        "registers the library's own functions under its own names, and reads a bool mask as 'sees', a float one as "
        "'to add'"
    )
    name = getattr(function, "__name__", repr(function))
    given = {"batch_size": 1, "q_length": 2, "kv_length": 3, "q_offset": 1, "kv_offset": 0}
    try:
        mask = function(
            **given, mask_function=causal_mask_function, attention_mask=None, allow_is_causal_skip=False,
            dtype=torch.float32, device="cpu",
        )  # fmt: skip
    except TypeError as error:
        raise ContractError(f"{name} is called otherwise now: {error}", DELEGATE, advice) from error
    sees = torch.tensor([[[[True, True, False], [True, True, True]]]])
    wanted = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min) if additive else sees
    if not isinstance(mask, Tensor) or mask.dtype != wanted.dtype or not torch.equal(mask, wanted):
        raise ContractError(f"{name} gives {mask!r}, no longer {wanted!r}, for two tokens after one", DELEGATE, advice)


def check_kwargs_reach(call: Call, name: str) -> None:
    """Check that a keyword argument given to the decoder's forward has reached its attention function."""
    for wanted, purpose in ((name, "a keyword that is given to the decoder's forward"), ("scaling", "scaling")):
        if wanted not in call.kwargs:
            raise ContractError(
                f"{purpose} no longer reaches registered attention functions; what does is {sorted(call.kwargs)}",
                f"{FORWARD} (CACHE_ARGUMENT), {INTERFACE}",
                "hand the cache over in another way: a context variable, or a forward pre-hook on the attention "
                "modules, which see past_key_values",
            )


def check_layer_index(calls: list[Call], layers: int) -> None:
    """Check that each attention module says which layer it is of."""
    indices = [getattr(call.module, "layer_idx", None) for call in calls]
    if indices != list(range(layers)):
        raise ContractError(
            f"the attention modules of {layers} layers say module.layer_idx = {indices}",
            f"{INTERFACE}, adapters/memcore_adapters/attention_modules.py",
            "set an attribute of memcore's own on every attention module in DecoderAdapter.wrap, and use that",
        )


def check_shapes(call: Call, *, query: tuple[int, ...], key: tuple[int, ...]) -> None:
    """Check that keys and values come with past ones, and grouped: one for several query heads."""
    got = (tuple(call.query.shape), tuple(call.key.shape), tuple(call.value.shape))
    if got != (query, key, key):
        raise ContractError(
            f"attention functions get queries, keys and values of {got}, no longer {(query, key, key)}: "
            "[B, heads, T, D], past ones included, heads of keys not repeated",
            f"{INTERFACE}, {LAYER}",
            "look where the model calls cache.update and repeat_kv, and adapt MemoryLayer.attend to what it gets",
        )


def check_rotated(call: Call, rotated: Tensor) -> None:
    """Check that keys come after the rotation by their positions, ``[B, H, T, D]``."""
    if not torch.allclose(call.key, rotated, atol=1e-5):
        raise ContractError(
            "attention functions no longer get keys as the model rotates them",
            f"{LAYER} (_store un-rotates, _placed rotates on), memcore/rotary.py",
            "if they come before the rotation, store them as they are and rotate when they are retrieved; the cos and "
            "sin are seen by a forward pre-hook on the attention module",
        )


def check_output_layout(expected: Tensor, got: Tensor) -> None:
    """Check that an attention function may return ``[B, T, H, D]``: logits with such a one, and without."""
    if not torch.allclose(expected, got, atol=1e-4):
        raise ContractError(
            "an attention function that returns [B, T, H, D] and None no longer gives the model's logits",
            INTERFACE,
            "see what transformers' sdpa_attention_forward returns; memcore passes on what the delegate returns",
        )


def check_layer(make: Callable[[], Any]) -> None:
    """Check a cache layer as ``MemoryLayer`` extends it: what its methods take, return and mean."""
    where = f"{LAYER}, {CACHE}"

    def need(holds: bool, what: str, advice: str) -> None:
        if not holds:
            raise ContractError(f"{DynamicLayer.__name__}.{what}", where, advice)

    layer, keys = make(), torch.arange(2 * 5.0).view(2, 1, 5, 1)
    try:
        first = layer.update(keys[:, :, :3], -keys[:, :, :3])
        both = layer.update(keys[:, :, 3:], -keys[:, :, 3:])
        sizes, length = layer.get_mask_sizes(2), layer.get_seq_length()
        layer.crop(-2)
        cropped = layer.keys
        layer.batch_select_indices(torch.tensor([1, 1]))
        selected = layer.keys
        layer.reset()
    except (TypeError, AttributeError, ValueError) as error:
        what = f"the methods of {DynamicLayer.__name__} are called otherwise now: {error}"
        raise ContractError(what, where, "give MemoryLayer's overrides the new signatures") from error
    need(
        torch.equal(first[0], keys[:, :, :3]) and torch.equal(both[0], keys) and torch.equal(both[1], -keys),
        "update no longer returns all keys and values, past ones first",
        "adapt MemoryLayer.update, and attend, which joins the window to what update returned",
    )
    need(
        tuple(sizes) == (7, 0),
        f"get_mask_sizes(2) after 5 tokens gives {sizes}, no longer (7, 0), the keys there will be and their offset",
        "adapt MemoryLayer.get_mask_sizes: the masks of the window depend on it",
    )
    need(length == 5, f"get_seq_length() after 5 tokens gives {length}", "adapt MemoryLayer.get_seq_length")
    need(
        torch.equal(cropped, keys[:, :, :3]),
        f"crop(-2) leaves {cropped.shape[2]} of 5 tokens, no longer 3: it means something else",
        "adapt MemoryCache.crop, MemoryLayer.crop and LocalWindow.crop to what the number means now",
    )
    need(
        torch.equal(selected, keys[[1, 1], :, :3]),
        "batch_select_indices no longer picks rows",
        "adapt MemoryLayer.batch_select_indices; beams depend on it",
    )


def check_recording_layer(make: Callable[[], Any]) -> None:
    """Check that a sliding layer that may take tokens back gives no more keys than it announces to the mask."""
    layer = make()
    layer.record_past = True
    for _ in range(3):
        announced = layer.get_mask_sizes(4)[0]
        keys, _ = layer.update(torch.zeros(1, 1, 4, 1), torch.zeros(1, 1, 4, 1))
    if keys.shape[2] != announced:
        raise ContractError(
            f"{DynamicSlidingWindowLayer.__name__} that records its past gives {keys.shape[2]} keys after several "
            f"forwards, and announces {announced}",
            f"{FORWARD}, which feeds a long input in pieces",
            "assisted generation fails with sliding layers: call cache.crop(0) after each piece, or require another "
            "release (5.18 is the first that slices)",
        )


def check_cache(make: Callable[..., Any], config: Any) -> None:
    """Check that a cache made from a configuration has one layer for each of the decoder's, of the right kind."""
    advice = "adapt MemoryCache.__init__ and _remember, which replace the layers with global attention"
    try:
        layers = make(config=config).layers
    except (TypeError, AttributeError) as error:
        raise ContractError(f"DynamicCache(config=...).layers fails: {error}", CACHE, advice) from error
    kinds = [DynamicSlidingWindowLayer if kind == "sliding_attention" else DynamicLayer for kind in config.layer_types]
    if [type(layer) for layer in layers] != kinds:
        names = [type(layer).__name__ for layer in layers]
        raise ContractError(f"DynamicCache(config=...) has layers {names} for {config.layer_types}", CACHE, advice)


def check_generate(generate: Callable[..., Any], model: Any) -> None:
    """Check that ``generate()`` goes on from the cache it is given: feeds what that has not seen, and fills it."""
    fed: list[int] = []
    handle = model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: fed.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    cache, ids = DynamicCache(config=model.config), torch.arange(3, 15)[None]
    try:
        with torch.no_grad():
            model(ids[:, :8], past_key_values=cache, use_cache=True)
        generate(ids, past_key_values=cache, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
    finally:
        handle.remove()
    if fed != [8, 4, 1, 1] or cache.get_seq_length() != 14:
        raise ContractError(
            f"generate() with a cache of 8 tokens and a prompt of 12 fed pieces of {fed[1:]} tokens, no longer "
            f"[4, 1, 1], and left {cache.get_seq_length()} tokens in it, no longer 14: all but the last one generated",
            f"{READER}, memcore/session.py, memcore/chat.py",
            "see how generate() prepares its inputs from past_key_values; answer() hands it everything read so far",
        )
