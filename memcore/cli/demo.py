"""``memcore demo``: hide facts in a long text and ask for them, with and without memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from memcore.cli.output import JsonOption, console, loading, notes, print_json, reading_progress
from memcore.cli.passages import as_values
from memcore.cli.settings import BackendOption, ConfigOption, DeviceOption, SetOption, WindowOption, memory_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from memcore.demo.run import Demonstration
    from memcore.demo.text import Fact
    from memcore.reader import Answer


def demo(
    tokens: Annotated[int, typer.Option(help="How much of the text to read.")] = 16_000,
    facts: Annotated[int, typer.Option(help="How many facts to hide, 1 to 8.")] = 4,
    seed: Annotated[int, typer.Option(help="Which facts.")] = 0,
    model: Annotated[str, typer.Option(help="Hub id or folder; Gemma 3 270M if not given.")] = "",
    window: WindowOption = None,
    backend: BackendOption = None,
    config: ConfigOption = "",
    settings: SetOption = None,
    device: DeviceOption = "",
    full: Annotated[bool, typer.Option(help="Also read with full attention.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Find facts hidden in a long text.

    A small model is asked for each: without memory, with memory, and by full attention.
    """
    memory = memory_config(config, settings, window=window, backend=backend)
    with notes.status("Loading torch and transformers ..."):
        from memcore.demo.run import demonstrate
        from memcore.demo.weights import demo_model_path
        from memcore.model_source import load_model
    made = "Loading the model (the first time it is made from its packages, which takes a minute) ..."
    with loading(model) if model else loading("", made):
        loaded, tokenizer = load_model(model or str(demo_model_path()), device=device)
    with reading_progress() as start:
        result = demonstrate(
            loaded,
            tokenizer,
            memory,
            tokens=tokens,
            facts=facts,
            seed=seed,
            full_attention=full,
            on_start=start,
        )
    if as_json:
        print_json(_values(result, tokenizer, memory.window_length))
    else:
        _show(result, tokenizer, memory.window_length)


def _values(result: Demonstration, tokenizer: PreTrainedTokenizerBase, window: int) -> dict[str, Any]:
    """Return what was hidden and what was answered as plain values."""
    return {
        "tokens": result.methods[1].tokens,
        "window": window,
        "facts": [
            {"prompt": fact.prompt, "answer": fact.answer, "position": position}
            for fact, position in zip(result.facts, result.positions, strict=True)
        ],
        "methods": [
            {
                "name": method.name,
                "tokens": method.tokens,
                "seconds": method.seconds,
                "peak_mib": method.peak_mib,
                "answers": [
                    {
                        "text": answer.text,
                        "right": fact.is_answered_by(answer.text),
                        "seconds": answer.seconds,
                        "passages": as_values(answer.passages, tokenizer),
                    }
                    for fact, answer in zip(result.facts, method.answers, strict=True)
                ],
            }
            for method in result.methods
        ],
    }


def _show(result: Demonstration, tokenizer: PreTrainedTokenizerBase, window: int) -> None:
    from rich.table import Table

    from memcore.demo.run import right_answers

    read = result.methods[1].tokens
    console.print(
        f"The Python language reference, {read:,} tokens, with {len(result.facts)} facts hidden in it. "
        f"The window is {window:,} tokens.\n"
    )
    for index, (fact, position) in enumerate(zip(result.facts, result.positions, strict=True)):
        where = f"  (hidden at token {position:,}, {position / read:.0%})"
        console.print(Text.assemble((f"{fact.prompt} …", "bold"), (where, "dim")))
        for method in result.methods:
            answer = method.answers[index]
            mark = ("right", "green") if fact.is_answered_by(answer.text) else ("wrong", "red")
            rest = f"  {_one_line(answer.text):<34} {answer.seconds:5.1f} s"
            console.print(Text.assemble(f"  {method.name:<15} ", mark, rest))
            if answer.passages:
                _show_passages(answer, fact, tokenizer)
        console.print()
    table = Table("", "right", "tokens", "read s", "tok/s", "answer s", "peak MiB*", caption_justify="left")
    table.caption = "* above the loaded model"
    for method in result.methods:
        seconds = sum(answer.seconds for answer in method.answers) / len(method.answers)
        table.add_row(
            method.name,
            f"{sum(right_answers(result.facts, method))} of {len(result.facts)}",
            f"{method.tokens:,}",
            f"{method.seconds:.1f}",
            f"{method.tokens / method.seconds:,.0f}",
            f"{seconds:.1f}",
            f"{method.peak_mib:,.0f}",
        )
    console.print(table)


def _show_passages(answer: Answer, fact: Fact, tokenizer: PreTrainedTokenizerBase) -> None:
    """Show how many passages were retrieved, and the one that says the fact."""
    said = f"{len(answer.passages)} passages retrieved"
    for passage in answer.passages:
        text = str(tokenizer.decode(passage.token_ids.clamp_min(0), skip_special_tokens=True))
        # Chunks end where they end: half of the sentence may be in the next.
        if fact.answer in text:
            said += f", that at token {passage.start:,}: … {_around(text, fact.answer)} …"
            break
    console.print(f"    {said}", style="dim", soft_wrap=True)


def _around(text: str, answer: str, width: int = 30) -> str:
    at = text.index(answer) + len(answer)
    return _one_line(text[max(0, at - width) : at + 10], width + 10)


def _one_line(text: str, width: int = 34) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
