"""Pass-keys found, over the depth at which they are hidden and the length of the prompt, side by side for each way."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch

from memcore.config import MemoryConfig
from memcore.errors import EvaluationError
from memcore.evaluation.needles import NEEDLES, Trial, check_length, make_trial
from memcore.evaluation.record import Record
from memcore.evaluation.vaults import Hidden, with_keys
from memcore.evaluation.ways import PIECE, check_ways, read_as, seen
from memcore.reader import Progress, Reader
from memcore.transfer import input_device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWER_TOKENS: Final = 8
"""Tokens generated: enough for five digits in any tokenizer."""

EACH: Final = "each"
"""The kind where one text has a key at every depth, and is read once for all of them."""

KINDS: Final = {**NEEDLES, EACH: "a key of another vault at each depth, all asked for after one reading"}
"""What can be hidden."""

Cell = tuple[float, int]
"""Depth and seed."""

Result = dict[str, Any]

Table = dict[float, dict[int, float]]
"""Shares of keys found, by depth and length."""


@attrs.frozen(kw_only=True)
class Grid:
    """What is tried.

    Attributes:
        lengths: of prompts, in tokens.
        depths: where the key stands, from 0 to 1.
        seeds: prompts for each length and depth.
        kinds: what is hidden, see :data:`KINDS`.
        others: wrong keys beside the right one, where the kind has several.
    """

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    seeds: int
    kinds: tuple[str, ...] = ("single",)
    others: int = 3

    def key(self, kind: str, length: int, depth: float, seed: int, way: str) -> str:
        """Return the name of one result."""
        depths = ", ".join(f"{each:g}" for each in sorted(self.depths))  # which say of what vault each key is
        beside = {"several": f" {self.others}", "distractors": f" {self.others}", EACH: f" {depths}"}
        return f"{kind}{beside.get(kind, '')} / {length} / {depth:g} / {seed} / {way}"


@torch.no_grad()
def answer(model: Any, tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor) -> str:
    """Return what a model writes after a prompt of ``[1, T]`` token ids. A plain one reads it in pieces."""
    ids = ids.to(input_device(model))
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=ANSWER_TOKENS,
        do_sample=False,
        prefill_chunk_size=None if hasattr(model, "memory") else PIECE,
        pad_token_id=tokenizer.pad_token_id or 0,
    )
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def evaluate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    text: Sequence[int],
    ways: Sequence[str],
    *,
    config: MemoryConfig,
    grid: Grid,
    record: Record,
    progress: Callable[[str, int], Progress] | None = None,
) -> None:
    """Ask for every key in every way, and keep each result in the record; what is there already is not done again.

    Every way gets the same prompts, and every prompt an empty memory.

    Args:
        model: wrapped or not, see :func:`memcore.evaluation.ways.read_as`.
        tokenizer: the model's.
        text: token ids in which to hide keys, without special ones.
        ways: see :data:`memcore.evaluation.ways.WAYS`.
        config: the memory's; its window is also that of the way without memory.
        grid: what is tried.
        record: where results go.
        progress: given what is asked and how many tokens there are to read, returns what is told how far it is.

    Raises:
        EvaluationError: the text is too short, or something is asked that there is not.
    """
    check_ways(ways, config)
    asking = _Asking(model=model, tokenizer=tokenizer, text=text, config=config, grid=grid)
    for length in (min(grid.lengths), max(grid.lengths)):  # what cannot be made is found before hours of work
        for kind in grid.kinds:
            asking.check(kind, length)
    for kind in grid.kinds:
        for length in grid.lengths:
            for way in ways:
                cells = [(depth, seed) for seed in range(grid.seeds) for depth in grid.depths]
                left = [cell for cell in cells if grid.key(kind, length, *cell, way) not in record.results]
                if not left:
                    continue
                texts = len({seed for _, seed in left}) if kind == EACH else len(left)
                what = f"{kind}, {length:,} tokens, {way}"
                tell = _untold if progress is None else progress(what, length * texts)
                with read_as(model, way, config, tokenizer):
                    if kind == EACH:
                        results = asking.together(left, way, length, tell)
                    else:
                        results = asking.alone(left, way, kind, length, tell)
                    for (depth, seed), result in results:
                        record.add(grid.key(kind, length, depth, seed, way), result)


@attrs.frozen(kw_only=True)
class _Asking:
    model: Any
    tokenizer: PreTrainedTokenizerBase
    text: Sequence[int]
    config: MemoryConfig
    grid: Grid

    def check(self, kind: str, length: int) -> None:
        """Raise EvaluationError if there can be no such prompts."""
        if kind not in KINDS:
            raise EvaluationError(f"needles are one of {', '.join(KINDS)}; got {kind!r}")
        if kind == EACH:
            self._with_keys(length, 0)
            return
        for depth in self.grid.depths:
            self._trial(kind, length, depth, 0)

    def alone(
        self, cells: Sequence[Cell], way: str, kind: str, length: int, tell: Progress
    ) -> Iterator[tuple[Cell, Result]]:
        """Read a prompt for each cell, and yield what was answered."""
        for done, cell in enumerate(cells, start=1):
            trial = self._trial(kind, length, *cell)
            ids, begun = seen(trial.ids, way, self.config), time.perf_counter()
            text = answer(self.model, self.tokenizer, ids)
            yield cell, _judged(text, trial.key, trial.others, ids.shape[1], time.perf_counter() - begun)
            tell(length * done, length * len(cells))

    def together(self, cells: Sequence[Cell], way: str, length: int, tell: Progress) -> Iterator[tuple[Cell, Result]]:
        """Read a text for each seed, and yield what was answered to each question about it.

        A question has its share of the tokens read, and of the time.
        """
        seeds = list(dict.fromkeys(seed for _, seed in cells))
        for done, seed in enumerate(seeds):
            ids, hidden = self._with_keys(length, seed)
            asked = [each for each in hidden if (each.depth, seed) in cells]
            reader = Reader(self.model, self.tokenizer, piece=PIECE)
            reader.read(seen(ids, way, self.config), _part(tell, length * done, length, length * len(seeds)))
            for each in asked:
                said = reader.ask(each.question, max_new_tokens=ANSWER_TOKENS)
                others = [other.key for other in hidden if other is not each]
                share, seconds = reader.tokens / len(asked), reader.seconds / len(asked)
                yield (each.depth, seed), _judged(said.text, each.key, others, share, said.seconds + seconds)

    def _trial(self, kind: str, length: int, depth: float, seed: int) -> Trial:
        return make_trial(
            self.tokenizer, self.text, tokens=length, depth=depth, seed=seed, kind=kind, others=self.grid.others
        )

    def _with_keys(self, length: int, seed: int) -> tuple[torch.Tensor, list[Hidden]]:
        check_length(self.text, length, length)
        start = random.Random(seed).randrange(len(self.text) - length)
        return with_keys(self.tokenizer, self.text[start : start + length], sorted(self.grid.depths), seed)


def _untold(done: int, total: int) -> None:
    """Tell nobody."""


def _part(tell: Progress, before: int, tokens: int, total: int) -> Progress:
    """Return what tells how far all is, when told how far a reading is that counts for so many tokens of it."""
    return lambda done, of: tell(before + tokens * done // of, total)


def _judged(text: str, key: str, others: Iterable[str], read: float, seconds: float) -> Result:
    return {
        "key": key,
        "answer": text,
        "found": key in text,
        "other": any(other in text for other in others),
        "read": read,
        "seconds": seconds,
    }


def summary(results: dict[str, Any], ways: Sequence[str], grid: Grid, kind: str) -> dict[str, Table]:
    """Return the share of keys found by each way, by depth and length: of the grid's results that are there."""
    tables: dict[str, Table] = {}
    for way in ways:
        tables[way] = {depth: {} for depth in grid.depths}
        for depth in grid.depths:
            for length in grid.lengths:
                keys = [grid.key(kind, length, depth, seed, way) for seed in range(grid.seeds)]
                found = [bool(results[key]["found"]) for key in keys if key in results]
                if found:
                    tables[way][depth][length] = sum(found) / len(found)
    return tables
