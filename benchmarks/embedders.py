"""Which chunks come back, per embedder, against those that exact attention would choose.

    python benchmarks/embedders.py --tokens 8000

The plain model reads pass-key documents with full attention while its queries and keys are recorded. At many points of
each document every method chooses ``top_k`` of the chunks behind the window from the queries before that point. It is
judged by the attention that the next 64 tokens really pay (at the end of the document: that the last token pays):

- recall: share of the ``top_k`` chunks with the most attention that it chose;
- mass: attention on its choice over attention on the best choice;
- needle: how often, over layers and documents, the chunk with the pass-key is among those chosen at the end;
- search: milliseconds for one choice in one layer; vectors: stored per chunk.

Then every method answers pass-key prompts for real.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import attrs
import torch
import typer
from machine import console as machine_console
from machine import save
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

import memcore
from memcore import MemoryConfig
from memcore.bank import MemoryBank
from memcore.chunk import ChunkBatch
from memcore.demo.text import language_reference
from memcore.embedder import ChunkKeys, RecentQueries
from memcore.evaluation.machine import describe_machine
from memcore.evaluation.needles import Trial, make_trial
from memcore.evaluation.passkey import answer
from memcore.eviction_policies import FifoEviction
from memcore.exact_backend import ExactBackend, ExactOptions
from memcore.memory import Memory
from memcore.model_source import load_model
from memcore.prompt import encode
from memcore.retriever import exact_votes
from memcore.rotary import RotaryGeometry, unrotate

ALL = 1_000_000
TOP_K = 8  # few, so that it shows who chooses well
METHODS: dict[str, dict[str, Any]] = {
    "mean key": {"embedder": "mean", "rerank": 0},
    "sub-block means": {"embedder": "subblock", "rerank": 0},
    "min/max bounds": {"embedder": "minmax", "rerank": 0},
    "min/max bounds of 8": {"embedder": "minmax", "embedder_options": {"block": 8}, "rerank": 0},
    "every key": {"embedder": "exact", "rerank": 0},
    "mean key, 4x re-ranked": {"embedder": "mean", "rerank": 4},
    "sub-block means, 4x re-ranked": {"embedder": "subblock", "rerank": 4},
    "sub-block means, 8x re-ranked": {"embedder": "subblock", "rerank": 8},
    "mean key, 8x re-ranked": {"embedder": "mean", "rerank": 8},
    "sub-block means, distance 0": {"embedder": "subblock", "rerank": 0, "query_distance": 0},
    "exact scores of all chunks": {"embedder": "mean", "rerank": ALL},
}
FUTURE = 64


@attrs.frozen(eq=False, kw_only=True)
class Point:
    """A place in one layer of one document where chunks are to be chosen.

    Attributes:
        recent: rotated queries before the place, ``[Hq, T, D]``, with their ``positions``.
        keys: rotated keys of all chunks behind the window, ``[N, H, C, D]``, with their ``starts``.
        mass: attention that each chunk will get, ``[N]``.
        needle: indices of the chunks with the pass-key if this is the document's end, else empty.
    """

    recent: Tensor
    positions: Tensor
    keys: Tensor
    starts: Tensor
    mass: Tensor
    needle: tuple[int, ...]
    geometry: RotaryGeometry
    scaling: float


@torch.no_grad()
def record(model: Any, trial: Trial, layers: list[int]) -> dict[int, tuple[Tensor, Tensor, float]]:
    """Return rotated queries ``[Hq, T, D]`` and keys ``[H, T, D]`` and the scaling of each layer, read in full."""
    found: dict[int, tuple[Tensor, Tensor, float]] = {}

    def recording(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        if module.layer_idx in layers:
            found[module.layer_idx] = (query[0].float(), key[0].float(), kwargs["scaling"])
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    AttentionInterface.register("recording", recording)
    AttentionMaskInterface.register("recording", sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation("recording")
    try:
        model(trial.ids, use_cache=False, logits_to_keep=1)
    finally:
        model.set_attn_implementation(before)
    return found


def points(
    trial: Trial, recorded: tuple[Tensor, Tensor, float], geometry: RotaryGeometry, config: MemoryConfig
) -> list[Point]:
    """Cut a document's layer into places to choose at."""
    query, key, scaling = recorded
    heads, tokens, dim = query.shape
    kv_heads, size = key.shape[0], config.chunk_size
    made = []
    for end in [*range(2 * config.window_length, tokens - FUTURE, config.segment_length), tokens]:
        count = (end - config.window_length - config.sinks) // size
        if count <= 2 * config.chunks:
            continue
        asking = torch.arange(end, end + FUTURE) if end < tokens else torch.tensor([tokens - 1])
        logits = query[:, asking].reshape(kv_heads, -1, dim) @ key.transpose(1, 2) * scaling
        logits = logits.view(heads, len(asking), tokens)
        logits.masked_fill_(torch.arange(tokens) > asking[:, None], float("-inf"))
        span = slice(config.sinks, config.sinks + count * size)
        mass = logits.softmax(dim=-1)[:, :, span].view(heads, len(asking), count, size).sum(dim=(0, 1, 3))
        needle = {(position - config.sinks) // size for position in trial.needle} if end == tokens else set()
        made.append(
            Point(
                recent=query[:, end - config.query_tokens : end],
                positions=torch.arange(end - config.query_tokens, end),
                keys=key[:, span].unflatten(1, (count, size)).transpose(0, 1),
                starts=torch.arange(config.sinks, config.sinks + count * size, size),
                mass=mass,
                needle=tuple(sorted(index for index in needle if index < count)),
                geometry=geometry,
                scaling=scaling,
            )
        )
    return made


def choose(point: Point, config: MemoryConfig, memory: Memory) -> tuple[Tensor, float, int]:
    """Let a method choose; return chunk indices, seconds of the search, and vectors per chunk."""
    count, kv_heads, size, _ = point.keys.shape
    embedder = memory.layer_setups[0].embedder
    bank = MemoryBank(ExactBackend(ExactOptions()), FifoEviction(), capacity=None)
    plain = unrotate(point.keys, (point.starts[:, None] + torch.arange(size))[:, None], point.geometry)
    token_ids = torch.zeros(count, size, dtype=torch.int64)
    embeddings = embedder.embed_chunks(ChunkKeys(keys=plain, token_ids=token_ids))
    bank.store(
        "layer",
        ChunkBatch(
            embeddings=embeddings,
            keys=point.keys,
            values=point.keys,
            starts=point.starts,
            lengths=torch.full((count,), size, dtype=torch.int64),
            token_ids=token_ids,
        ),
    )
    begun = time.perf_counter()
    queries = unrotate(point.recent * point.scaling, point.positions - config.distance, point.geometry)
    asked = RecentQueries(
        queries=queries, kv_heads=kv_heads, token_ids=torch.zeros(queries.shape[1], dtype=torch.int64)
    )

    def rescore(chunks: ChunkBatch) -> Tensor:
        return exact_votes(queries[None], unrotate(chunks.keys, chunks.starts[:, None, None], point.geometry))

    found = bank.retrieve(
        "layer",
        embedder.embed_queries(asked),
        config.chunks,
        candidates=config.candidates,
        rescore=rescore if config.rerank else None,
    )
    assert found is not None
    return found.ids, time.perf_counter() - begun, embeddings.shape[1]


def main(
    model: Annotated[str, typer.Option(help="Hub id or folder; the demo model if left out.")] = "",
    tokens: Annotated[int, typer.Option(help="Length of the documents.")] = 8000,
    window: Annotated[int, typer.Option(help="Local window.")] = 1024,
    documents: Annotated[int, typer.Option(help="Documents to record.")] = 3,
    layers: Annotated[int, typer.Option(help="At most so many layers, spread evenly.")] = 6,
    trials: Annotated[int, typer.Option(help="Pass-key prompts to answer per method; 0 for none.")] = 5,
    dtype: Annotated[str, typer.Option(help="Weights and activations.")] = "bfloat16",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
) -> None:
    """Compare the embedders."""
    if not model:
        from memcore.demo.weights import demo_model_path

        model = str(demo_model_path())
    described: dict[str, Any] = {"model": Path(model).name, "dtype": dtype, "tokens": tokens, "window": window}
    described |= {"documents": documents, "layers": layers, "trials": trials}
    plain, tokenizer = load_model(model, device="cpu", dtype=dtype)
    text = encode(tokenizer, language_reference(), special=False)[0].tolist()
    depths = [0.1, 0.3, 0.5, 0.7, 0.9]
    made = [
        make_trial(tokenizer, text, tokens=tokens, depth=depths[i % 5], seed=i) for i in range(max(documents, trials))
    ]
    configs = {name: MemoryConfig(window=window, top_k=TOP_K, **fields) for name, fields in METHODS.items()}
    memories: dict[str, Memory] = {}
    for name, config in configs.items():
        wrapped: Any = memcore.wrap(plain, config)
        memories[name] = wrapped.memory
        geometries = {setup.index: setup.geometry for setup in memories[name].layer_setups}
        memcore.unwrap(plain)
    every = sorted(geometries)
    chosen_layers = [
        every[round(i * (len(every) - 1) / max(1, min(layers, len(every)) - 1))] for i in range(min(layers, len(every)))
    ]
    places: list[Point] = []
    results: dict[str, dict[str, Any]] = {}
    console = machine_console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("recording full attention", total=documents)
        for trial in made[:documents]:
            for index, recorded in record(plain, trial, chosen_layers).items():
                geometry = geometries[index]
                assert geometry is not None
                places += points(trial, recorded, geometry, next(iter(configs.values())))
            progress.advance(task)
        task = progress.add_task("choosing chunks", total=len(configs))
        for name, config in configs.items():
            results[name] = _judge(places, config, memories[name])
            progress.advance(task)
        task = progress.add_task("answering", total=trials * len(configs))
        for name, config in configs.items():
            if not trials:
                break
            memcore.wrap(plain, config)
            begun, found = time.perf_counter(), 0
            for trial in made[:trials]:
                found += trial.key in answer(plain, tokenizer, trial.ids)
                progress.advance(task)
            results[name] |= {"found": found, "trials": trials, "seconds": (time.perf_counter() - begun) / trials}
            memcore.unwrap(plain)
            save(json_file, "embedders", described, results)
    save(json_file, "embedders", described, results)
    title = f"{Path(model).name}, {tokens:,} tokens, window {window}, {len(places)} places"
    table = Table("embedder", "recall", "mass", "needle", "search ms", "vectors", "pass-keys", "s/prompt", title=title)
    for name, r in sorted(results.items(), key=lambda item: -item[1]["mass"]):
        asked = [f"{r['found']}/{r['trials']}", f"{r['seconds']:.1f}"] if trials else ["", ""]
        table.add_row(
            name,
            f"{r['recall']:.3f}",
            f"{r['mass']:.3f}",
            r["needle"],
            f"{r['search_ms']:.1f}",
            f"{r['vectors']}",
            *asked,
        )
    console.print(table)
    console.print(f"{describe_machine()}", style="dim")


def _judge(places: list[Point], config: MemoryConfig, memory: Memory) -> dict[str, Any]:
    recall, mass, seconds, needles, vectors = [], [], [], [], 0
    for point in places:
        ids, took, vectors = choose(point, config, memory)
        best = point.mass.topk(config.chunks)
        recall.append(len(set(best.indices.tolist()) & set(ids.tolist())) / config.chunks)
        mass.append(float(point.mass[ids].sum() / best.values.sum()))
        seconds.append(took)
        if point.needle:
            needles.append(bool(set(point.needle) & set(ids.tolist())))
    return {
        "recall": statistics.mean(recall),
        "mass": statistics.mean(mass),
        "needle": f"{sum(needles)}/{len(needles)}",
        "search_ms": 1000 * statistics.median(seconds),
        "vectors": vectors,
    }


if __name__ == "__main__":
    typer.run(main)
