"""The evidence: every study of docs/results.md, run again by name, and the page's tables made of what they wrote.

    python benchmarks/results.py run --books BOOKS --labelled SETS [STUDY ...]
    python benchmarks/results.py write

``BOOKS`` is a folder with long texts, two of which are measured (``--measured``) and never trained on. ``SETS`` is the
``--data-folder`` of ``memcore eval icl``. A study is a command of ``memcore eval`` or ``memcore train`` that keeps its
results in ``docs/results/STUDY`` and goes on where it stopped, so the studies can be run over several days.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import attrs
import typer
from machine import console
from page import markdown_table, replace_table

from memcore.cli import app
from memcore.demo.weights import demo_model_path
from memcore.evaluation.perplexity import relative
from memcore.evaluation.perplexity import summary as perplexities
from memcore.files import replacing

DOCS: Final = Path(__file__).parents[1] / "docs"
PAGE: Final = DOCS / "results.md"
RESULTS: Final = DOCS / "results"

CONTEXTS: Final = (8192, 16384, 32768)
SCORED: Final = ("--scored", "4096", "--every", "4")
"""Every fourth of the last 4,096 tokens of a context: as many as 1,024 in a row, and over more of the text."""

KEYS: Final = (4096, 8192, 16384, 32768, 65536, 131072, 262144)
"""Of each of the first four, a prompt for every depth; of the others one text for all, each key of another vault."""

APPROXIMATE: Final = {"faiss": ("memory:exact", "memory:faiss"), "hnswlib": ("memory:hnswlib",)}
"""Backends with an approximate index, and the ways of reading in their studies, which share one table: with exact
search, once, to compare with. The indexes are searched at any size, as by default these texts are too short for one."""

LONGEST: Final = {"perplexity-second-long": "", "perplexity-second-top-k": ", top_k=128"}
"""Studies of the second model that share a table, and what it says behind their ways of reading."""


@attrs.frozen(kw_only=True)
class Training:
    """A training, of whose model and budget another one differs in its memory alone.

    Attributes:
        memory: fields of its memory, as lines of TOML.
        second: whether it is of the second model.
        first_layer: the first layer that trains.
        tokens: how many it reads.
        measured_tokens: how many of the measured texts it reads to tell the loss before, on the way and after.
        contexts: lengths at which the perplexity of the trained model is measured.
    """

    memory: str
    second: bool = False
    first_layer: int = 6
    tokens: int = 98304
    measured_tokens: int = 8192
    contexts: tuple[int, ...] = CONTEXTS

    @property
    def remembers(self) -> bool:
        """Whether it has a memory."""
        return self.memory != NO_MEMORY


NO_MEMORY: Final = "layers = []"
SECOND: Final[Mapping[str, Any]] = {
    "second": True,
    "first_layer": 12,
    "tokens": 32768,
    "measured_tokens": 0,
    "contexts": CONTEXTS[:1],
}
"""What the trainings of the second model share, which takes a minute for 1,024 tokens on one core."""

TRAININGS: Final = {
    "memlong": Training(memory="memory_layer = 5\nlayers = [11, 17]\ngate = true"),
    "own-keys": Training(memory="layers = [5, 11, 17]\ngate = true"),
    "window-only": Training(memory=NO_MEMORY),
    "second-own-keys": Training(memory="gate = true", **SECOND),
    "second-window-only": Training(memory=NO_MEMORY, **SECOND),
}
"""Gemma 3 270M's global layers are 5, 11 and 17; the second model's are all.

One layer's keys for all as in the paper, each layer's own as in the default, and the same training without memory.
"""


@attrs.frozen(kw_only=True)
class Sources:
    """What the studies read.

    Attributes:
        first: the model of the demo.
        second: another one; studies of it are left out without.
        measured: texts that are measured.
        trained: texts that are trained on.
        labelled: folder of the labelled sets.
        work: folder for trained weights.
    """

    first: str
    second: str
    measured: tuple[Path, ...]
    trained: tuple[Path, ...]
    labelled: Path | None
    work: Path


def option_each(option: str, values: Any) -> list[str]:
    """Return an option once for each value."""
    return [part for value in values for part in (option, str(value))]


def studies(sources: Sources) -> dict[str, list[str]]:
    """Return the command of each study that these sources allow."""
    first, texts = sources.first, option_each("--file", sources.measured)
    ways = option_each("--way", ("window", "streaming", "random", "memory", "full"))
    keys = option_each("--file", (*sources.measured, *sources.trained))
    found: dict[str, list[str]] = {
        "perplexity": ["eval", "ppl", first, *texts, *option_each("--context", CONTEXTS), *SCORED, *ways],
        "pass-keys": ["eval", "passkey", first, *keys, *option_each("--tokens", KEYS[:4]), "--seeds", "1",
                      *option_each("--way", ("memory", "full"))],
        "pass-keys-long": ["eval", "passkey", first, *keys, *option_each("--tokens", KEYS[4:]), "--needles", "each",
                           "--seeds", "1", "--way", "memory"],
        "needles": ["eval", "passkey", first, *keys, "--tokens", "8192", "--seeds", "2",
                    *option_each("--needles", ("several", "distractors", "update")),
                    *option_each("--way", ("memory", "full"))],
    }  # fmt: skip
    for name, indexed in APPROXIMATE.items():
        found[f"perplexity-{name}"] = ["eval", "ppl", first, *texts, "--context", str(max(CONTEXTS)), *SCORED,
                                       "--set", f"backend={name}", "--set", "backend_options.exact_below=0",
                                       *option_each("--way", indexed)]  # fmt: skip
    if sources.labelled is not None:
        # 128 demonstrations would fit the default window.
        found["icl"] = ["eval", "icl", first, *option_each("--dataset", ("sst2", "sst5", "subj")), "--data-folder",
                        str(sources.labelled), "--items", "50", "--window", "512",
                        *option_each("--way", ("window", "streaming", "memory", "full"))]  # fmt: skip
    for name, training in TRAININGS.items():
        model = sources.second if training.second else first
        if model:
            ways_trained = ("window", "streaming", *(["memory"] if training.remembers else []))
            found[f"train-{name}"] = ["train", str(sources.work / f"{name}.toml")]
            found[f"perplexity-{name}"] = ["eval", "ppl", model, *texts, *option_each("--context", training.contexts),
                                           *SCORED, "--trained", str(sources.work / name),
                                           *option_each("--way", ways_trained)]  # fmt: skip
    if sources.second:
        found["perplexity-second"] = ["eval", "ppl", sources.second, *texts, *option_each("--context", CONTEXTS[:2]),
                                      *SCORED, *ways]  # fmt: skip
        longest = ["eval", "ppl", sources.second, *texts, "--context", str(CONTEXTS[2]), *SCORED]
        found["perplexity-second-long"] = [*longest, *option_each("--way", ("window", "memory", "full"))]
        found["perplexity-second-top-k"] = [*longest, "--set", "top_k=128", "--way", "memory"]
        asked = ["eval", "passkey", sources.second, *keys, "--seeds", "1"]
        found["pass-keys-second"] = [*asked, *option_each("--tokens", KEYS[:2]),
                                     *option_each("--way", ("memory", "full"))]  # fmt: skip
        found["pass-keys-second-long"] = [*asked, *option_each("--tokens", KEYS[3:5]), "--needles", "each",
                                          "--way", "memory"]  # fmt: skip
        found["pass-keys-second-full"] = [*asked, "--tokens", str(KEYS[3]), "--needles", "each",
                                          *option_each("--way", ("memory", "full"))]  # fmt: skip
        if sources.labelled is not None:
            found["icl-second"] = [found["icl"][0], found["icl"][1], sources.second, *found["icl"][3:]]
    return found


def configuration(sources: Sources, name: str) -> str:
    """Return the configuration of a training."""
    training = TRAININGS[name]
    documents, measured = (
        json.dumps([str(path.resolve()) for path in paths]) for paths in (sources.trained, sources.measured)
    )
    asked = training.measured_tokens
    return f"""model = {json.dumps(sources.second if training.second else sources.first)}
documents = {documents}
evaluation = {measured if asked else []}
output = {json.dumps(str(sources.work / name))}

[memory]
{training.memory}

[data]
max_tokens = {training.tokens}
{f"max_evaluation_tokens = {asked}" if asked else ""}

[[stages]]
name = "memory"
learning_rate = 3e-4
{"evaluate_every = 64" if asked else ""}
save_every = 32
plan = {{ first_layer = {training.first_layer}, lora_rank = 16 }}
"""


def ways_of(keys: Iterable[str]) -> list[str]:
    """Return the ways of reading that results have, by their names, in the order in which they come."""
    return list(dict.fromkeys(key.rpartition(" / ")[2] for key in keys))


def perplexity_table(results: dict[str, Any], reference: str) -> str:
    """Return perplexities, and in brackets how many times those of a way of reading they are, if that was measured."""
    ways = ways_of(results)
    table = perplexities(results, ways)
    contexts = sorted(next(iter(table.values())))
    rows = []
    for way in ways:
        ratios = relative(results, way, reference) if reference in ways and way != reference else {}
        cells = [
            f"{table[way][context]:.2f}"
            + (f" ({ratios[context][0]:.3f} ± {ratios[context][1]:.3f})" if context in ratios else "")
            for context in contexts
        ]
        rows.append([way, *cells])
    return markdown_table(["", *(f"{context:,}" for context in contexts)], rows)


def trained_together(records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the results of several trained models as those of one, with the model before the way of reading.

    Of what was trained without memory, reading with memory is reading with the window and the first tokens.
    """
    together = {}
    for name, results in records.items():
        for key, result in results.items():
            text, _, way = key.rpartition(" / ")
            if (name, way) != ("window-only", "memory"):
                together[f"{text} / {name}, read as {way}"] = result
    return together


def passkey_table(results: dict[str, Any]) -> str:
    """Return pass-keys found, by kind, way and length."""
    counts: dict[tuple[str, str], dict[int, list[bool]]] = {}
    for key, result in results.items():
        kind, length, _, _, way = key.split(" / ")
        counts.setdefault((kind, way), {}).setdefault(int(length), []).append(result["found"])
    lengths = sorted({length for row in counts.values() for length in row})
    rows = [
        [kind, way, *(f"{sum(row[n])} of {len(row[n])}" if n in row else "" for n in lengths)]
        for (kind, way), row in counts.items()
    ]
    return markdown_table(["", "", *(f"{length:,}" for length in lengths)], rows)


def icl_table(folder: Path) -> str:
    """Return accuracies in per cent, mean and standard error over the seeds, by set and way.

    A set that was not read in one of the ways has an empty cell there.
    """
    from memcore.evaluation.icl import summary

    sets = {path.stem.removeprefix("icl-"): results_in(path) for path in sorted(folder.glob("icl-*.json"))}
    ways = ways_of(key for results in sets.values() for key in results)
    rows = []
    for name, results in sets.items():
        own = ways_of(results)
        seeds = min(sum(key.endswith(f" / {way}") for key in results) for way in own)
        table = summary(results, own, seeds)
        cells = {way: f"{100 * mean:.1f} ± {100 * error:.1f}" for way, (mean, error) in table.items()}
        rows.append([name, *(cells.get(way, "") for way in ways)])
    return markdown_table(["", *ways], rows)


def ablation_table(results: dict[str, Any]) -> str:
    """Return how many times the perplexity of full attention, and that of the default, each variant's is.

    A last column says how many pass-keys were found, if any variant was asked for some.
    """
    from ablations import rows

    names = [name for name in ways_of(results) if name != "full attention"]
    variants, beside_default = rows(results, names), rows(results, names, to="default")
    asked = any(found for _, _, found, _ in variants.values())
    table = []
    for name, (ratio, error, found, _) in variants.items():
        paired, paired_error, *_ = beside_default[name]
        cells = [f"{ratio:.3f} ± {error:.3f}", "" if name == "default" else f"{paired:.3f} ± {paired_error:.3f}"]
        keys = f"{sum(found)} of {len(found)}" if found else ""
        table.append([name, *cells, *([keys] if asked else [])])
    columns = ["", "perplexity / full attention's", "/ the default's", *(["pass-keys"] if asked else [])]
    return markdown_table(columns, table)


def results_in(path: Path) -> dict[str, Any]:
    """Return the results of a record."""
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["results"]
    return results


def made() -> dict[str, str]:
    """Return the page's tables, by study, of those studies that have been run.

    Those of one trained model share one, those of approximate indexes, and those of the second model's longest context.
    """
    tables: dict[str, str] = {}
    trained: dict[str, dict[str, Any]] = {}
    trained_second: dict[str, dict[str, Any]] = {}
    approximate: dict[str, Any] = {}
    longest: dict[str, Any] = {}
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        name = folder.name.removeprefix("perplexity-")
        if (folder / "ppl.json").exists():
            results = results_in(folder / "ppl.json")
            if name in TRAININGS:
                (trained_second if TRAININGS[name].second else trained)[name.removeprefix("second-")] = results
            elif name in APPROXIMATE:
                approximate |= results
            elif folder.name in LONGEST:
                longest |= {f"{key}{LONGEST[folder.name]}": result for key, result in results.items()}
            else:
                tables[folder.name] = perplexity_table(results, "full")
        if (folder / "passkey.json").exists():
            tables[folder.name] = passkey_table(results_in(folder / "passkey.json"))
        if (folder / "ablations.json").exists():
            tables[folder.name] = ablation_table(results_in(folder / "ablations.json"))
        if list(folder.glob("icl-*.json")):
            tables[folder.name] = icl_table(folder)
    for table, records in {"trained": trained, "trained-second": trained_second}.items():
        if records:
            tables[table] = perplexity_table(trained_together(records), "window-only, read as streaming")
    if approximate:
        tables["approximate"] = perplexity_table(approximate, "memory:exact")
    if longest:
        tables["perplexity-second-long"] = perplexity_table(longest, "full")
    return tables


command = typer.Typer(add_completion=False, no_args_is_help=True)


@command.command()
def run(
    study: Annotated[list[str] | None, typer.Argument(help="Which studies; all of them if none is named.")] = None,
    books: Annotated[Path, typer.Option(help="Folder of long texts, .txt.")] = Path("books"),
    measured: Annotated[
        list[str] | None, typer.Option(help="Names of those that are measured, not trained on.")
    ] = None,
    labelled: Annotated[Path | None, typer.Option(help="Folder of the labelled sets.")] = None,
    second: Annotated[str, typer.Option(help="Hub id or folder of a second model.")] = "",
    work: Annotated[Path, typer.Option(help="Folder for trained weights.")] = Path("trained"),
    dtype: Annotated[str, typer.Option(help="Weights and activations of what is evaluated.")] = "float32",
) -> None:
    """Run studies, or go on with them."""
    names = measured or ["emma", "persuasion"]
    texts = sorted(books.glob("*.txt"))
    sources = Sources(
        first=str(demo_model_path()),
        second=second,
        measured=tuple(path for path in texts if path.stem in names),
        trained=tuple(path for path in texts if path.stem not in names),
        labelled=labelled,
        work=work,
    )
    there = studies(sources)
    unknown = sorted(set(study or ()) - set(there))
    if unknown or not sources.measured:
        raise typer.BadParameter(f"no study {', '.join(unknown)}; there are {', '.join(there)}" if unknown
                                 else f"no text of {', '.join(names)} in {books}")  # fmt: skip
    for name in study or there:
        arguments = there[name]
        if arguments[0] == "train":
            work.mkdir(parents=True, exist_ok=True)
            Path(arguments[1]).write_text(configuration(sources, name.removeprefix("train-")), encoding="utf-8")
        else:
            arguments = [*arguments, "--dtype", dtype, "--output", str(RESULTS / name)]
        console().print(f"{name}: memcore {shlex.join(arguments)}", soft_wrap=True)
        app(arguments, standalone_mode=False)


@command.command()
def write(
    check: Annotated[bool, typer.Option("--check", help="Only say whether the page is what the results are.")] = False,
) -> None:
    """Write the page's tables anew."""
    page = found = PAGE.read_text(encoding="utf-8")
    for name, table in made().items():
        page = replace_table(page, name, table, maker="make results-page")
    if check and page != found:
        raise SystemExit(f"{PAGE.name} is not what the results are: make results-page")
    if page != found:
        with replacing(PAGE) as new:
            new.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    command()
