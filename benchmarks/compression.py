"""What int8 compression of payloads saves and what it costs, on the keys and values of a real model.

    python benchmarks/compression.py

The model reads a text, and the keys and values of each layer that keeps all of them are cut into chunks, compressed and
restored. Errors are root mean squares over all numbers of a layer, relative to the numbers; what rounding to int8 by
one scale for the whole layer would cost stands beside them. Of the layers the median is shown, in brackets the smallest
and largest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from machine import console as machine_console
from machine import save, spread
from rich.table import Table
from torch import Tensor

from memcore.compression import compress, decompress
from memcore.demo.text import language_reference
from memcore.evaluation.machine import describe_machine
from memcore.model_source import load_model
from memcore.prompt import encode


@torch.no_grad()
def keys_and_values(model: Any, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return keys and values ``[H, T, D]`` of every layer that keeps all of them."""
    cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values
    return [(layer.keys[0], layer.values[0]) for layer in cache.layers if layer.keys.shape[2] == ids.shape[1]]


def in_chunks(x: Tensor, size: int) -> Tensor:
    """Return ``[H, T, D]`` as chunks ``[N, H, C, D]``, without what is left over."""
    count = x.shape[1] // size
    heads, _, width = x.shape
    return x[:, : count * size].reshape(heads, count, size, width).transpose(0, 1)


def relative(got: Tensor, want: Tensor) -> float:
    """Return the root mean square of the difference over that of what is wanted, in percent."""
    return 100 * float((got.float() - want.float()).norm() / want.float().norm())


def one_scale(x: Tensor) -> Tensor:
    """Return numbers rounded to int8 by one scale for all."""
    scale = x.float().abs().max() / 127
    return (x.float() / scale).round() * scale


def judge(keys: Tensor, values: Tensor, size: int) -> dict[str, float]:
    """Compress and restore one layer's keys and values ``[H, T, D]``."""
    cut_keys, cut_values = in_chunks(keys, size), in_chunks(values, size)
    lengths = torch.full((len(cut_keys),), size)
    parts = compress(cut_keys, cut_values, lengths)
    back_keys, back_values = decompress(parts, lengths, keys.dtype)
    return {
        "bytes": 100 * sum(part.nbytes for part in parts.values()) / (cut_keys.nbytes + cut_values.nbytes),
        "keys": relative(back_keys, cut_keys),
        "values": relative(back_values, cut_values),
        "keys_one_scale": relative(one_scale(keys), keys),
        "values_one_scale": relative(one_scale(values), values),
    }


def main(
    model: Annotated[str, typer.Option(help="Hub id or folder; the demo model if left out.")] = "",
    tokens: Annotated[int, typer.Option(help="Length of the text.")] = 4096,
    size: Annotated[list[int], typer.Option(help="Tokens per chunk.")] = [32, 64, 128],  # noqa: B006
    dtype: Annotated[str, typer.Option(help="Weights, keys and values.")] = "bfloat16",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
) -> None:
    """Measure int8 compression."""
    if not model:
        from memcore.demo.weights import demo_model_path

        model = str(demo_model_path())
    plain, tokenizer = load_model(model, device="cpu", dtype=dtype)
    layers = keys_and_values(plain, encode(tokenizer, language_reference(), special=False)[:, :tokens])
    heads, _, width = layers[0][0].shape
    title = f"{Path(model).name}, {dtype}, {len(layers)} layers with {heads} heads of {width}"
    table = Table(
        "chunk", "bytes %", "error of keys %", "by one scale", "error of values %", "by one scale", title=title
    )
    results = {}
    for chunk in size:
        found = [judge(keys, values, chunk) for keys, values in layers]
        results[str(chunk)] = found
        names = ("bytes", "keys", "keys_one_scale", "values", "values_one_scale")
        table.add_row(f"{chunk}", *(spread([layer[name] for layer in found]) for name in names))
    save(json_file, "compression", {"model": Path(model).name, "tokens": tokens, "dtype": dtype}, results)
    console = machine_console()
    console.print(table)
    console.print(f"{describe_machine()}", style="dim")


if __name__ == "__main__":
    typer.run(main)
