"""A way to read a long context that needs no memcore, measured in a process of its own: ``peers.py`` starts it.

Gets one argument, JSON: ``model``, ``dtype``, ``way``, ``piece`` and ``job`` (a file with what
``peers_measure.measure`` takes). Ways:

- ``full``: attention to everything, read in pieces of ``piece`` tokens.
- ``quantised:BACKEND``: transformers' quantised cache (fp8, quanto, hqq) with its defaults, 4 bits but for fp8. The
  context is read in one call, as ``generate()`` does: in pieces, all of it would be quantised anew for every piece.
- ``kvpress:PRESS:RATIO``: a press of kvpress, and the share of keys and values that goes. The context is compressed
  once, by a press that does not know the question, as in kvpress's own pipeline, while the model reads it in one call.

In models with sliding layers, the layers with global attention alone are quantised or compressed.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import transformers
from peers_measure import Peer, measure
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, cache_utils

_QUANTISED = {"fp8": "Fp8QuantizedLayer", "quanto": "QuantoQuantizedLayer", "hqq": "HQQQuantizedLayer"}


def kinds(model: Any) -> list[str]:
    """Return the kind of attention of each layer."""
    return getattr(model.config, "layer_types", None) or ["full_attention"] * model.config.num_hidden_layers


def in_pieces(model: Any, new_cache: Callable[[], Any], piece: int | None) -> Callable[[Tensor], Any]:
    """Return what reads a context in pieces, or in one call if ``piece`` is None."""

    def prefill(ids: Tensor) -> Any:
        cache = new_cache()
        for part in ids.split(piece or ids.shape[1], dim=1):
            model(input_ids=part, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    return prefill


def quantised_cache(model: Any, backend: str) -> Any:
    """Return transformers' quantised cache, also for a model with sliding layers, which its own class refuses."""
    layer_class = getattr(cache_utils, _QUANTISED[backend])
    cache = DynamicCache(config=model.config)
    for index, kind in enumerate(kinds(model)):
        if kind == "full_attention":
            cache.layers[index] = layer_class()
    return cache


def pressed(model: Any, name: str, ratio: float) -> Callable[[Tensor], Any]:
    """Return what reads a context with a press of kvpress."""
    press = getattr(importlib.import_module("kvpress"), name)(compression_ratio=ratio)
    rotary = model.model.rotary_emb
    if "layer_type" in inspect.signature(rotary.forward).parameters:
        rotary = functools.partial(rotary, layer_type="full_attention")

    def prefill(ids: Tensor) -> Any:
        cache = DynamicCache(config=model.config)
        with ExitStack() as stack:
            # What `press(model)` does, which knows of sliding layers in some models only.
            press.post_init_from_model(model)
            for layer, kind in zip(model.model.layers, kinds(model), strict=True):
                if kind == "full_attention":
                    layer.self_attn.rotary_emb = rotary
                    hook = layer.self_attn.register_forward_hook(press.forward_hook, with_kwargs=True)
                    stack.callback(hook.remove)
            model.model(input_ids=ids, past_key_values=cache, use_cache=True)
        return cache

    return prefill


def peer(model: Any, way: str, piece: int) -> Peer:
    """Return the model that reads in a way."""

    def forward(ids: Tensor, cache: Any, seen: int) -> Tensor:
        positions = torch.arange(seen, seen + ids.shape[1])[None]
        logits: Tensor = model(input_ids=ids, past_key_values=cache, position_ids=positions, use_cache=True).logits
        return logits

    name, *options = way.split(":")
    single = False
    if name == "kvpress":
        prefill = pressed(model, options[0], float(options[1]))
        # Beside sliding layers the mask of a compressed one is made for more keys than it holds: right for one new
        # token, which sees all of them.
        single = any(kind != "full_attention" for kind in kinds(model))
    elif name == "quantised":
        prefill = in_pieces(model, lambda: quantised_cache(model, options[0]), None)
    else:
        prefill = in_pieces(model, lambda: DynamicCache(config=model.config), piece)
    return Peer(model=model, prefill=prefill, forward=forward, single=single)


def main() -> None:
    """Measure and print the result."""
    what = json.loads(sys.argv[1])
    model: Any = AutoModelForCausalLM.from_pretrained(what["model"], dtype=what["dtype"]).eval()
    job = json.loads(Path(what["job"]).read_text(encoding="utf-8"))
    result = measure(peer(model, what["way"], what["piece"]), job)
    print(json.dumps({**result, "transformers": transformers.__version__}))


if __name__ == "__main__":
    main()
