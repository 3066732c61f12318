"""Bytes and operations per token of a large model with a memory, from the numbers of its configuration alone.

    python benchmarks/estimate.py
    python benchmarks/estimate.py --layers 26 --kv-heads 8 --heads 16 --head-dim 128

Prints the tables of docs/costs.md, where every assumption is stated. It measures nothing and needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from page import markdown_table

GIB = 2**30
GB = 1e9
FLOAT32, BFLOAT16, INT8 = 4, 2, 1


@dataclass(frozen=True, kw_only=True)
class Model:
    """The numbers of a decoder's configuration.

    Attributes:
        parameters: weights in all.
        layers: with global attention, each with a memory of its own.
        heads: query heads.
        kv_heads: key/value heads.
        head_dim: numbers per head.
    """

    parameters: float
    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def width(self) -> int:
        """Numbers of one token's keys in one layer; its values have as many."""
        return self.kv_heads * self.head_dim

    def keys_and_values(self, size: float) -> float:
        """Return the bytes of one token's keys and values in all layers, in ``size`` bytes a number."""
        return 2 * self.layers * self.width * size


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The numbers of a memory's configuration, named as in ``memcore.MemoryConfig``.

    Attributes:
        candidates: chunks that are compared by exact scores, of which ``top_k`` come back.
    """

    window: int
    sinks: int
    chunk_size: int
    top_k: int
    candidates: int
    query_tokens: int
    retrieve_every: int

    @property
    def segment(self) -> int:
        """Tokens that are read at a time."""
        return min(512, self.window // 2)

    @property
    def attended(self) -> int:
        """Tokens that one token attends to: sinks, what was retrieved, and the window."""
        return self.sinks + self.top_k * self.chunk_size + self.window


def window_rows(model: Model, memory: Memory) -> list[tuple[str, str]]:
    """Return what is on the GPU beside the weights."""
    local = model.keys_and_values(BFLOAT16)
    return [
        ("keys and values of one token, all layers", f"{local / 1024:,.0f} KiB"),
        ("window and sinks", f"{local * (memory.window + memory.sinks) / GIB:.3f} GiB"),
        ("retrieved chunks, laid out", f"{local * memory.top_k * memory.chunk_size / GIB:.3f} GiB"),
        (
            "candidates of one layer while they are re-ranked",
            f"{_candidates(model, memory, BFLOAT16) / 2**20:,.1f} MiB",
        ),
    ]


def _candidates(model: Model, memory: Memory, size: float) -> float:
    """Return the bytes that one layer fetches for one choice of chunks, in ``size`` bytes a number."""
    return memory.candidates * memory.chunk_size * 2 * model.width * size


def bank_rows(model: Model, memory: Memory, tokens: list[int]) -> list[list[str]]:
    """Return what the bank takes, and what full attention would, for each length of memory."""
    per_chunk = model.layers * model.width * FLOAT32
    runs = memory.chunk_size // 8
    table = [
        ["full attention: keys and values, bfloat16", *(_size(model.keys_and_values(BFLOAT16) * n) for n in tokens)],
        ["bank: keys and values, bfloat16", *(_size(model.keys_and_values(BFLOAT16) * n) for n in tokens)],
        ["bank: keys and values, int8", *(_size(_int8(model, memory) * n) for n in tokens)],
    ]
    for name, vectors in (("subblock", runs), ("mean", 1)):
        table.append(
            [f"search vectors, `{name}`", *(_size(per_chunk * vectors * n // memory.chunk_size) for n in tokens)]
        )
    return table


def _int8(model: Model, memory: Memory) -> float:
    """Return the bytes of one token's keys and values in one byte a number.

    With a scale and an offset, float32, for each channel of a chunk's keys and for each token's values in each head.
    """
    steps = 2 * FLOAT32 * (model.head_dim / memory.chunk_size + 1)
    return model.layers * model.kv_heads * (2 * model.head_dim * INT8 + steps)


def _size(size: float) -> str:
    return f"{size / GIB:,.1f} GiB" if size < 1024 * GIB else f"{size / GIB / 1024:,.2f} TiB"


def transfer_rows(model: Model, memory: Memory, link: float) -> list[list[str]]:
    """Return what one retrieval in all layers moves to the GPU, and how long that takes at ``link`` bytes a second."""
    rows = []
    small = _int8(model, memory) / model.keys_and_values(1)
    for name, size in (("bfloat16", BFLOAT16), ("int8, turned back on the GPU", small)):
        for what, moved in (
            ("candidates' keys and values", _candidates(model, memory, size) * model.layers),
            ("the chosen chunks alone", model.keys_and_values(size) * memory.top_k * memory.chunk_size),
        ):
            seconds = moved / link
            rows.append(
                [
                    f"{what}, {name}",
                    f"{moved / 2**20:,.0f} MiB",
                    f"{1000 * seconds:.1f} ms",
                    f"{1000 * seconds / memory.retrieve_every:.1f} ms",
                    f"{1000 * seconds / memory.segment:.3f} ms",
                ]
            )
    return rows


def flop_rows(model: Model, memory: Memory, tokens: list[int]) -> list[list[str]]:
    """Return operations of one generated token, a multiplication and an addition being two."""
    per_key = 4 * model.layers * model.heads * model.head_dim  # products with keys, and sums of values
    queries = model.heads * memory.query_tokens
    # For one vector a chunk. Each head's query lies in the slot of its key/value head and is compared in all slots.
    search = 2 * model.layers * queries * model.width / memory.retrieve_every / memory.chunk_size
    rerank = 2 * model.layers * queries * model.head_dim * memory.candidates * memory.chunk_size
    return [
        ["weights", *(_flops(2 * model.parameters) for _ in tokens)],
        ["full attention", *(_flops(per_key * n) for n in tokens)],
        ["attention with memory", *(_flops(per_key * memory.attended) for _ in tokens)],
        ["search of every vector, `subblock`", *(_flops(search * (memory.chunk_size // 8) * n) for n in tokens)],
        ["search of every vector, `mean`", *(_flops(search * n) for n in tokens)],
        [
            "the same, `mean`, were each head compared in its own slot only",
            *(_flops(search / model.kv_heads * n) for n in tokens),
        ],
        ["re-ranking", *(_flops(rerank / memory.retrieve_every) for _ in tokens)],
    ]


def _flops(operations: float) -> str:
    return f"{operations / GB:,.2f} G" if operations < 1e12 else f"{operations / 1e12:,.2f} T"


def main(
    parameters: Annotated[float, typer.Option(help="Weights, in thousand millions.")] = 8.03,
    layers: Annotated[int, typer.Option(help="Layers with a memory.")] = 32,
    heads: Annotated[int, typer.Option(help="Query heads.")] = 32,
    kv_heads: Annotated[int, typer.Option(help="Key/value heads.")] = 8,
    head_dim: Annotated[int, typer.Option(help="Numbers per head.")] = 128,
    tokens: Annotated[list[int], typer.Option(help="Tokens in memory.")] = [131_072, 1_000_000, 10_000_000],  # noqa: B006
    window: Annotated[int, typer.Option(help="As in the memory's configuration, like the following.")] = 2048,
    sinks: Annotated[int, typer.Option()] = 4,
    chunk_size: Annotated[int, typer.Option()] = 64,
    top_k: Annotated[int, typer.Option()] = 32,
    candidates: Annotated[int, typer.Option(help="Chunks compared by exact scores.")] = 64,
    query_tokens: Annotated[int, typer.Option()] = 8,
    retrieve_every: Annotated[int, typer.Option()] = 2,
    link: Annotated[float, typer.Option(help="GB a second from host to GPU.")] = 25.0,
) -> None:
    """Estimate what a memory costs."""
    model = Model(parameters=parameters * GB, layers=layers, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    memory = Memory(
        window=window,
        sinks=sinks,
        chunk_size=chunk_size,
        top_k=top_k,
        candidates=candidates,
        query_tokens=query_tokens,
        retrieve_every=retrieve_every,
    )
    lengths = [f"{n:,} tokens" for n in tokens]
    weights = ("weights, bfloat16", f"{model.parameters * BFLOAT16 / GIB:.1f} GiB")
    print("On the GPU, however long the text:\n")
    print(markdown_table(["", ""], [list(row) for row in (weights, *window_rows(model, memory))]), end="\n\n")
    print("In the memory bank, in RAM or on disk, all layers:\n")
    print(markdown_table(["", *lengths], bank_rows(model, memory, tokens)), end="\n\n")
    print(f"From host to GPU for one choice of chunks in all layers, at {link:g} GB/s:\n")
    head = ["", "bytes", "time", "a generated token", "a token read"]
    print(markdown_table(head, transfer_rows(model, memory, link * GB)), end="\n\n")
    print("Operations of one generated token:\n")
    print(markdown_table(["", *lengths], flop_rows(model, memory, tokens)), end="\n\n")


if __name__ == "__main__":
    typer.run(main)
