"""Several sequences at once: a batch, threads, and many questions about one text.

    make bench-sequences ARGS="--questions 100"

- A batch of prompts of different lengths, padded on the left, each row with a memory of its own, against the same
  prompts one after the other.
- The same prompts in as many threads, which share one wrapped model, also while one more thread reads a text with it;
  and whether each gets the tokens that it gets alone.
- A text read once into a session and asked many times: what a question costs, against reading the text anew for it.
"""

from __future__ import annotations

import functools
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import torch
import typer
from machine import console as machine_console
from machine import spread
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from texts import repeated
from tiny import small_setting
from torch import Tensor

import memcore
from memcore.evaluation.machine import describe_machine
from memcore.evaluation.passkey import ANSWER_TOKENS
from memcore.evaluation.plots import canvas
from memcore.evaluation.record import Record
from memcore.evaluation.vaults import Hidden, with_keys
from memcore.model_source import load_model
from memcore.reader import Reader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH, ALONE, THREADS, READING = "one batch", "one after the other", "threads", "threads, one more reads a text"

SPREAD_OF_LENGTHS: Final = 0.5
"""The shortest prompt of a batch is this much of the longest."""


def padded(rows: Sequence[Tensor], padding: int) -> dict[str, Tensor]:
    """Return ``[1, T]`` token ids of different lengths as a batch, padded on the left."""
    longest = max(row.shape[1] for row in rows)
    ids = [torch.nn.functional.pad(row, (longest - row.shape[1], 0), value=padding) for row in rows]
    mask = [torch.nn.functional.pad(torch.ones_like(row), (longest - row.shape[1], 0)) for row in rows]
    return {"input_ids": torch.cat(ids), "attention_mask": torch.cat(mask)}


def generate(model: Any, prompt: Mapping[str, Tensor], tokens: int, padding: int) -> list[list[int]]:
    """Return what is generated greedily after each row."""
    out = model.generate(**prompt, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=padding)
    new: list[list[int]] = out[:, prompt["input_ids"].shape[1] :].tolist()
    return new


def in_each_way(
    model: Any, rows: Sequence[Tensor], tokens: int, padding: int, repeats: int, read: Callable[[], None]
) -> dict[str, Any]:
    """Read prompts and generate after them in a batch, one by one and in threads, in turns.

    Args:
        model: wrapped.
        rows: ``[1, T]`` token ids each.
        tokens: generated after each.
        padding: token id.
        repeats: rounds.
        read: reads a text, for the way in which another thread does so meanwhile.

    Returns:
        By way: ``seconds`` of each repeat, and ``same``, the rows that got what they get alone.
    """
    prompts = [padded([row], padding) for row in rows]
    ways: dict[str, Callable[[], list[list[int]]]] = {
        ALONE: lambda: [generate(model, prompt, tokens, padding)[0] for prompt in prompts],
        BATCH: lambda: generate(model, padded(rows, padding), tokens, padding),
        THREADS: lambda: _in_threads(model, prompts, tokens, padding),
        READING: lambda: _while(read, lambda: _in_threads(model, prompts, tokens, padding)),
    }
    results: dict[str, Any] = {}
    right: list[list[int]] = []
    for _ in range(repeats):
        for way, run in ways.items():
            begun = time.perf_counter()
            try:
                found = run()
            except (memcore.MemcoreError, RuntimeError, IndexError, KeyError) as error:
                results[way] = {"error": f"{type(error).__name__}: {error}"}
                continue
            took = time.perf_counter() - begun
            right = right or found
            result = results.setdefault(way, {"seconds": [], "same": []})
            if "error" not in result:
                result["seconds"].append(took)
                result["same"].append(sum(row == alone for row, alone in zip(found, right, strict=True)))
    return results


def _in_threads(model: Any, prompts: Sequence[Mapping[str, Tensor]], tokens: int, padding: int) -> list[list[int]]:
    with ThreadPoolExecutor(len(prompts)) as pool:
        return [found[0] for found in pool.map(lambda prompt: generate(model, prompt, tokens, padding), prompts)]


def _while(other: Callable[[], None], run: Callable[[], list[list[int]]]) -> list[list[int]]:
    """Return what ``run`` does, while another thread does ``other`` again and again."""
    over = threading.Event()

    def again() -> None:
        while not over.is_set():
            other()

    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(again)
        try:
            return run()
        finally:
            over.set()
            beside.result()


def asked(
    model: Any, tokenizer: PreTrainedTokenizerBase, ids: Tensor, hidden: Sequence[Hidden], questions: int, anew: int
) -> dict[str, Any]:
    """Read a text once and ask, and read it anew for each question.

    Args:
        model: wrapped.
        tokenizer: its tokenizer.
        ids: ``[1, T]`` token ids of the text.
        hidden: what is asked for, in turns.
        questions: how many to ask of what was read once.
        anew: how many to ask with a reading each.

    Returns:
        Seconds of the one reading (``ingest``), of each question after it (``question``), and of each with a reading
        of its own (``anew``); and how many were answered rightly.
    """
    session = memcore.Session(model, "questions", tokenizer)
    begun = time.perf_counter()
    session.ingest(ids)
    result: dict[str, Any] = {"ingest": time.perf_counter() - begun, "question": [], "anew": [], "found": 0}
    for number in range(questions):
        each = hidden[number % len(hidden)]
        answer = session.ask(each.question, max_new_tokens=ANSWER_TOKENS)
        result["question"].append(answer.seconds)
        result["found"] += each.key in answer.text
    for number in range(anew):
        begun = time.perf_counter()
        reader = Reader(model, tokenizer)
        reader.read(ids)
        reader.ask(hidden[number % len(hidden)].question, max_new_tokens=ANSWER_TOKENS)
        result["anew"].append(time.perf_counter() - begun)
    return result


def show(console: Console, results: Mapping[str, Any], title: str) -> None:
    """Print the tables."""
    together = results["together"]
    columns = ["", "seconds", "× one after the other", "rows with the same tokens"]
    table = Table(
        *columns, box=MARKDOWN, title=f"{title}: {together['lengths']} tokens read, {together['new']} written"
    )
    alone = statistics.median(together["ways"][ALONE]["seconds"])
    for way, result in together["ways"].items():
        if "error" in result:
            table.add_row(way, result["error"])
            continue
        same = f"{min(result['same'])} of {len(together['lengths'])}"
        table.add_row(way, spread(result["seconds"]), f"{statistics.median(result['seconds']) / alone:.2f}", same)
    console.print(table)
    many = results["questions"]
    table = Table("", "seconds", box=MARKDOWN, title=f"{title}: questions about {many['tokens']:,} tokens")
    table.add_row("reading, once", f"{many['ingest']:.3g}")
    table.add_row(f"a question after that, of {len(many['question'])}", spread(many["question"]))
    table.add_row("a question with a reading of its own", spread(many["anew"]))
    console.print(table)
    console.print(f"{many['found']} of {len(many['question'])} answered rightly.", style="dim")


def draw(path: Path, title: str, many: Mapping[str, Any]) -> None:
    """Draw what questions cost together, with the text read once and read anew for each."""
    figure, axes = canvas(title)
    numbers = range(len(many["question"]) + 1)
    each, anew = (statistics.median(many[name]) for name in ("question", "anew"))
    axes.plot(numbers, [many["ingest"] + each * number for number in numbers], label="read once")
    axes.plot(numbers, [anew * number for number in numbers], label="read anew for each question")
    axes.set_xlabel("questions")
    axes.set_ylabel("seconds in all")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def settings_of(folder: Path, small: bool) -> dict[str, Any]:
    """Return what the small setting changes."""
    if not small:
        return {}
    return {
        **small_setting(folder, characters=4000),
        "rows": 3,
        "tokens": 600,
        "long": 900,
        "new": 6,
        "repeats": 2,
        "questions": 3,
        "anew": 1,
    }


def main(
    model: Annotated[str, typer.Option(help="Hub id or folder; the demo model if left out.")] = "",
    rows: Annotated[int, typer.Option(help="Sequences in the batch.")] = 8,
    tokens: Annotated[int, typer.Option(help="Tokens of the longest of them.")] = 4000,
    long: Annotated[int, typer.Option(help="Tokens of the text that is asked about.")] = 16_000,
    new: Annotated[int, typer.Option(help="Tokens generated after each sequence.")] = 32,
    questions: Annotated[int, typer.Option(help="Questions about the text.")] = 100,
    anew: Annotated[int, typer.Option(help="Questions with a reading of their own.")] = 3,
    repeats: Annotated[int, typer.Option(help="Rounds of the batch.")] = 3,
    file: Annotated[list[Path], typer.Option(help="Texts; the Python language reference if left out.")] = [],  # noqa: B006
    window: Annotated[int, typer.Option(help="Local window.")] = 2048,
    backend: Annotated[str, typer.Option(help="Of the memory.")] = "exact",
    dtype: Annotated[str, typer.Option(help="Weights and activations.")] = "float32",
    output: Annotated[Path, typer.Option(help="Folder for results and picture.")] = Path("bench-sequences"),
    small: Annotated[bool, typer.Option("--small", help="Hardly anything, to see that it runs.")] = False,
) -> None:
    """Measure several sequences at once."""
    given: dict[str, Any] = {"model": model, "rows": rows, "tokens": tokens, "long": long, "new": new}
    given |= {"questions": questions, "anew": anew, "repeats": repeats, "files": file, "window": window}
    given |= settings_of(output, small)
    if not given["model"]:
        from memcore.demo.weights import demo_model_path

        given["model"] = str(demo_model_path())
    config = memcore.MemoryConfig(window=given.pop("window"), backend=backend)
    if backend == "lmdb":
        config = memcore.MemoryConfig(
            window=config.window_length, backend=backend, backend_options={"path": str(output / "memory")}
        )
    given |= {"files": [str(path.resolve()) for path in given["files"]], "dtype": dtype, "config": config.to_dict()}
    record = Record(output / "sequences.json", "sequences", given)
    loaded: Any
    loaded, tokenizer = load_model(given["model"], device="cpu", dtype=dtype)
    files = [Path(path) for path in given["files"]]
    text, times = repeated(tokenizer, files, given["rows"] * given["tokens"] + given["long"])
    memcore.wrap(loaded, config)
    if "together" not in record.results:
        lengths = torch.linspace(SPREAD_OF_LENGTHS, 1, given["rows"]).mul(given["tokens"]).long().tolist()
        parts = [torch.tensor([text[n * given["tokens"] :][:length]]) for n, length in enumerate(lengths)]
        padding, reader = int(tokenizer.pad_token_id or 0), Reader(loaded, tokenizer)
        found = in_each_way(
            loaded, parts, given["new"], padding, given["repeats"], functools.partial(reader.read, parts[-1])
        )
        record.add("together", {"lengths": lengths, "new": given["new"], "ways": found})
    if "questions" not in record.results:
        ids, hidden = with_keys(tokenizer, text[-given["long"] :], [0.1, 0.3, 0.5, 0.7, 0.9], 0)
        found = asked(loaded, tokenizer, ids, hidden, given["questions"], given["anew"])
        record.add("questions", {"tokens": given["long"], **found})
    title = f"{Path(given['model']).name}, {dtype}, window {config.window_length:,}, {backend}"
    console = machine_console()
    show(console, record.results, title)
    draw(output / "sequences.png", title, record.results["questions"])
    if times > 1:
        console.print(f"The text is repeated: it is read {times:.1f} times.", style="dim")
    console.print(f"{describe_machine()}", style="dim")


if __name__ == "__main__":
    typer.run(main)
