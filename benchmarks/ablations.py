"""One field of the configuration at a time: perplexity against full attention's, pass-keys found, tokens a second.

    python benchmarks/ablations.py --file emma.txt --file persuasion.txt

Every variant is the default configuration, or that given by ``--set``, but for what its name says. All read the same
texts, and the same tokens are scored after the same context. The ratio to full attention and its standard error are
taken block by block (``memcore.evaluation.perplexity.relative``). Pass-keys are the kind ``each`` of ``memcore eval
passkey``. What is done already with the same texts is not done again, so variants can be added, and a run that was
interrupted goes on.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import attrs
import torch
import typer
from machine import console
from rich.progress import Progress
from rich.table import Table
from tiny import small_setting

import memcore
from memcore import MemoryConfig
from memcore.cli.evaluate.setting import digest
from memcore.cli.settings import SetOption, memory_config
from memcore.demo.text import language_reference
from memcore.demo.weights import demo_model_path
from memcore.evaluation.machine import describe_machine
from memcore.evaluation.passkey import ANSWER_TOKENS
from memcore.evaluation.perplexity import perplexity, relative, spans_for
from memcore.evaluation.plots import panels
from memcore.evaluation.record import Record
from memcore.evaluation.vaults import with_keys
from memcore.evaluation.ways import read_as
from memcore.files import read_text
from memcore.fingerprint import model_fingerprint
from memcore.model_source import load_model
from memcore.prompt import encode
from memcore.reader import Progress as Tell
from memcore.reader import Reader

Changes = dict[str, Any]
"""Fields of the configuration that a variant changes; ``way`` is a way of reading other than ``memory``."""

DEPTHS: Final = (0.1, 0.3, 0.5, 0.7, 0.9)
TEXTS: Final = 2
"""With pass-keys, of several vaults each: they are harder to tell apart than one is to find, so there is something to
gain and to lose."""


def variants(layers: Sequence[int], context: int) -> dict[str, dict[str, Changes]]:
    """Return what is compared, by group and name.

    Args:
        layers: those that can have a memory.
        context: tokens that are read.
    """
    half = len(layers) // 2
    return {
        "controls": {
            "full attention": {"way": "full"},
            "sliding window": {"way": "window"},
            "window and sinks": {"way": "streaming"},
            "chunks by chance": {"way": "random"},
            "default": {},
        },
        "top_k": {f"top_k={n}": {"top_k": n} for n in (4, 8, 16, 32, 64)},
        "chunk_size": {f"chunk_size={n}": {"chunk_size": n} for n in (16, 32, 128, 256)},
        "window": {f"window={n}": {"window": n} for n in (256, 512, 1024, 4096)},
        "segment": {f"segment={n}": {"segment": n} for n in (64, 128, 256)},
        "positions": {f"positions={each}": {"positions": each} for each in ("window", "zero", "original")},
        "embedder": {
            "embedder=mean": {"embedder": "mean"},
            "embedder=minmax": {"embedder": "minmax"},
            "embedder=exact": {"embedder": "exact"},
            "rerank=0": {"rerank": 0},
            "rerank=1": {"rerank": 1},
            "rerank=4": {"rerank": 4},
        },
        "query_tokens": {f"query_tokens={n}": {"query_tokens": n} for n in (1, 8, 32, 128)},
        "sinks": {f"sinks={n}": {"sinks": n} for n in (0, 1, 16)},
        "layers": {
            "the first half": {"layers": tuple(layers[:half])},
            "the second half": {"layers": tuple(layers[half:])},
            **({f"layer {n} alone": {"layers": (n,)} for n in layers} if len(layers) <= 4 else {}),
        },
        "eviction": {
            f"{name}, a quarter kept": {"eviction": name, "capacity": context // 4}
            for name in ("memlong", "fifo", "lru", "lfu")
        },
    }


def chosen(groups: dict[str, dict[str, Changes]], names: Sequence[str]) -> dict[str, dict[str, Changes]]:
    """Return only the variants of these names, and what every picture needs.

    Raises:
        typer.BadParameter: there is none of a name.
    """
    unknown = sorted(set(names) - {name for members in groups.values() for name in members})
    if unknown:
        raise typer.BadParameter(f"no variant {', '.join(unknown)}")
    wanted = {"full attention", "window and sinks", "default", *names}
    kept = {
        group: {name: changes for name, changes in members.items() if name in wanted}
        for group, members in groups.items()
    }
    return {group: members for group, members in kept.items() if members}


@attrs.frozen(kw_only=True)
class Ablation:
    """What every variant is measured by.

    Attributes:
        model: not wrapped.
        tokenizer: the model's.
        texts: token ids ``[1, T]`` by name.
        context: tokens read of each.
        scored: at the end of these.
        every: which of the scored tokens count.
        passkey_tokens: length of the texts with pass-keys; 0 for none.
        depths: where the pass-keys are hidden in each.
        base: what the variants change.
        record: where results go.
    """

    model: Any
    tokenizer: Any
    texts: dict[str, torch.Tensor]
    context: int
    scored: int
    every: int
    passkey_tokens: int
    depths: Sequence[float]
    base: MemoryConfig
    record: Record

    @functools.cached_property
    def passkey_text(self) -> list[int]:
        """Token ids of the text in which pass-keys are hidden."""
        ids: list[int] = encode(self.tokenizer, language_reference(), special=False)[0].tolist()
        return ids

    def measure(self, name: str, changes: Changes, tell: Callable[[str], Tell]) -> None:
        """Do what is not in the record yet."""
        fields = dict(changes)
        way = fields.pop("way", "memory")
        config = attrs.evolve(self.base, **fields)
        for text, ids in self.texts.items():
            key = f"{text} / {name}"
            if key not in self.record.results:
                done = perplexity(
                    self.model,
                    ids,
                    way,
                    config=config,
                    contexts=[self.context],
                    scored=self.scored,
                    every=self.every,
                    progress=tell(key),
                )
                self.record.add(key, {**attrs.asdict(done), "changes": changes})
        if self.passkey_tokens and way != "window":
            self._passkeys(name, way, config, tell)

    def _passkeys(self, name: str, way: str, config: MemoryConfig, tell: Callable[[str], Tell]) -> None:
        key = f"pass-keys / {name}"
        if key in self.record.results:
            return
        found: list[bool] = []
        told = tell(key)
        with read_as(self.model, way, config, self.tokenizer):
            for number in range(TEXTS):
                part = self.passkey_text[number * self.passkey_tokens :][: self.passkey_tokens]
                ids, hidden = with_keys(self.tokenizer, part, self.depths, number)
                reader = Reader(self.model, self.tokenizer)
                reader.read(ids)
                for each in hidden:
                    found.append(each.key in reader.ask(each.question, max_new_tokens=ANSWER_TOKENS).text)
                    told(len(found), TEXTS * len(hidden))
        self.record.add(key, found)


def rows(
    results: dict[str, Any], names: Sequence[str], to: str = "full attention"
) -> dict[str, tuple[float, float, list[bool], float]]:
    """Return, for each variant that was measured: ratio, its standard error, pass-keys found, tokens a second."""
    read = {key: value for key, value in results.items() if not key.startswith("pass-keys / ")}
    table = {}
    for name in names:
        texts = [value for key, value in read.items() if key.endswith(f" / {name}")]
        if texts:
            ((ratio, error),) = relative(read, name, to).values()
            speed = statistics.fmean(text["read"] / text["seconds"] for text in texts)
            table[name] = (ratio, error, results.get(f"pass-keys / {name}", []), speed)
    return table


def show(groups: dict[str, dict[str, Changes]], results: dict[str, Any], title: str) -> None:
    """Print one table of all groups."""
    table = Table("", "variant", "perplexity / full attention's", "pass-keys", "tok/s", title=title)
    for group, members in groups.items():
        for name, (ratio, error, found, speed) in rows(results, list(members)).items():
            keys = f"{sum(found)} of {len(found)}" if found else ""
            table.add_row(group, name, f"{ratio:.4f} ± {error:.4f}", keys, f"{speed:,.0f}")
    console().print(table)
    console().print(f"{describe_machine()}", style="dim")


def draw(path: Path, groups: dict[str, dict[str, Changes]], results: dict[str, Any], title: str) -> None:
    """Draw every variant below the other, group by group: the ratio to full attention, with two standard errors."""
    reference = rows(results, ["default", "window and sinks"])
    measured = {group: rows(results, list(members)) for group, members in groups.items() if group != "controls"}
    measured = {group: values for group, values in measured.items() if values}
    names = [name for values in measured.values() for name in values]
    figure, (axes,) = panels(title, 1, height=1.5 + 0.22 * (len(names) + len(measured)))
    places: list[int] = []
    for group, values in measured.items():
        first = places[-1] + 2 if places else 0  # a gap between groups
        own = list(range(first, first + len(values)))
        places += own
        ratios, errors = [value[0] for value in values.values()], [2 * value[1] for value in values.values()]
        axes.errorbar(ratios, own, xerr=errors, fmt="o", capsize=3, label=group)
    for name, style in (("default", "-"), ("window and sinks", ":")):
        if name in reference:
            axes.axvline(reference[name][0], linestyle=style, color="grey", label=name)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("perplexity / full attention's")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)


def main(
    file: Annotated[list[Path], typer.Option(help="A long text, UTF-8; may be repeated.")] = [],  # noqa: B006
    model: Annotated[str, typer.Option(help="Hub id or folder; the demo model if left out.")] = "",
    context: Annotated[int, typer.Option(help="Tokens read of each text.")] = 8192,
    scored: Annotated[int, typer.Option(help="Tokens at the end of the context, of which some are scored.")] = 6144,
    every: Annotated[int, typer.Option(help="Score every N-th of these.")] = 4,
    passkey_tokens: Annotated[int, typer.Option(help="Length of texts with pass-keys; 0 for none.")] = 8000,
    group: Annotated[list[str] | None, typer.Option(help="Only this group; may be repeated.")] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="Only this one, beside full attention, the window with sinks and the default; repeatable."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Weights and activations.")] = "bfloat16",
    settings: SetOption = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the results; ablations-MODEL if left out.")] = None,
    small: Annotated[bool, typer.Option("--small", help="Hardly anything, to see that it runs.")] = False,
) -> None:
    """Change one field of the configuration at a time, and see what it does."""
    base = memory_config("", settings)
    if small:
        setting = small_setting(output or Path("ablations-small"), characters=2000)
        model, file, base = setting["model"], setting["files"], attrs.evolve(base, window=setting["window"])
        context, scored, passkey_tokens = 512, 64, 250
    if not file:
        raise typer.BadParameter("give at least one --file")
    texts = {path.name: read_text(path) for path in file}
    if len(texts) < len(file):
        raise typer.BadParameter("two files have the same name, by which their results would be kept")
    spans_for([context], scored)
    name = model or str(demo_model_path())
    loaded, tokenizer = load_model(name, dtype=dtype)
    wrapped: Any = memcore.wrap(loaded)
    layers = [setup.index for setup in wrapped.memory.layer_setups]
    memcore.unwrap(loaded)
    folder = output or Path(f"ablations-{Path(name).name}")
    depths = DEPTHS[:1] if small else DEPTHS
    given = {"model": Path(name).name, "fingerprint": model_fingerprint(loaded), "dtype": dtype, "context": context,
                "scored": scored, "every": every, "passkey_tokens": passkey_tokens,
                "passkey_texts": {"number": TEXTS, "depths": depths, "text": digest(language_reference())},
                "texts": {text: digest(words) for text, words in texts.items()},
                "defaults": base.to_dict()}  # fmt: skip
    record = Record(folder / "ablations.json", "ablations", given)
    ablation = Ablation(
        model=loaded,
        tokenizer=tokenizer,
        texts={text: encode(tokenizer, words, special=True)[:, :context] for text, words in texts.items()},
        context=context,
        scored=scored,
        every=every,
        passkey_tokens=passkey_tokens,
        depths=depths,
        base=base,
        record=record,
    )
    groups = variants(layers, context)
    if variant:
        groups = chosen(groups, variant)
    with Progress(disable=not console().is_terminal) as progress:

        def tell(what: str) -> Tell:
            task = progress.add_task(what)
            return lambda done, total: progress.update(task, completed=done, total=total)

        for each in dict.fromkeys(("controls", *(group or groups))):
            for what, changes in groups.get(each, {}).items():
                ablation.measure(what, changes, tell)
    title = f"{Path(name).name}, {context:,} tokens, window {base.window_length:,}"
    show(groups, record.results, title)
    draw(folder / "ablations.png", groups, record.results, title)


if __name__ == "__main__":
    typer.run(main)
