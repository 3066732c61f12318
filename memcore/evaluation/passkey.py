"""Pass-keys found, over the depth at which they are hidden and the length of the prompt, side by side for each way."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch

from memcore.config import MemoryConfig
from memcore.evaluation.losses import Progress
from memcore.evaluation.needles import Trial, make_trial
from memcore.evaluation.record import Record
from memcore.evaluation.ways import PIECE, check_ways, read_as, seen
from memcore.transfer import input_device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWER_TOKENS: Final = 8
"""Tokens generated: enough for five digits in any tokenizer."""

Table = dict[float, dict[int, float]]
"""Shares of keys found, by depth and length."""


@attrs.frozen(kw_only=True)
class Grid:
    """What is tried.

    Attributes:
        lengths: of prompts, in tokens.
        depths: where the key stands, from 0 to 1.
        seeds: prompts for each length and depth.
        kinds: what is hidden, see :data:`memcore.evaluation.needles.NEEDLES`.
        others: wrong keys beside the right one, where the kind has several.
    """

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    seeds: int
    kinds: tuple[str, ...] = ("single",)
    others: int = 3

    def key(self, kind: str, length: int, depth: float, seed: int, way: str) -> str:
        """Return the name of one result."""
        beside = f" {self.others}" if kind in ("several", "distractors") else ""
        return f"{kind}{beside} / {length} / {depth:g} / {seed} / {way}"


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
        progress: given what is asked and how many prompts there are, returns what is told how far it is.

    Raises:
        EvaluationError: the text is too short, or something is asked that there is not.
    """
    check_ways(ways, config)
    for length in (min(grid.lengths), max(grid.lengths)):  # what cannot be made is found before hours of work
        for kind in grid.kinds:
            for depth in grid.depths:
                make_trial(tokenizer, text, tokens=length, depth=depth, seed=0, kind=kind, others=grid.others)
    for kind in grid.kinds:
        for length in grid.lengths:
            for way in ways:
                cells = [(depth, seed) for seed in range(grid.seeds) for depth in grid.depths]
                left = [cell for cell in cells if grid.key(kind, length, *cell, way) not in record.results]
                if not left:
                    continue
                tell = progress(f"{kind}, {length:,} tokens, {way}", len(left)) if progress is not None else None
                with read_as(model, way, config, tokenizer):
                    for done, (depth, seed) in enumerate(left, start=1):
                        trial = make_trial(
                            tokenizer, text, tokens=length, depth=depth, seed=seed, kind=kind, others=grid.others
                        )
                        result = _ask(model, tokenizer, trial, way, config)
                        record.add(grid.key(kind, length, depth, seed, way), result)
                        if tell is not None:
                            tell(done, len(left))


def _ask(
    model: Any, tokenizer: PreTrainedTokenizerBase, trial: Trial, way: str, config: MemoryConfig
) -> dict[str, Any]:
    ids, begun = seen(trial.ids, way, config), time.perf_counter()
    text = answer(model, tokenizer, ids)
    return {
        "key": trial.key,
        "answer": text,
        "found": trial.key in text,
        "other": any(key in text for key in trial.others),
        "read": ids.shape[1],
        "seconds": time.perf_counter() - begun,
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
