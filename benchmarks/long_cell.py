"""One reading of a long text in a process of its own: ``long.py`` starts it.

Gets one argument, JSON: the fields of :class:`Cell`. Prints what was measured as JSON.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from readings import InMemory, OnDisk, Plain, Reading
from resident import Resident
from texts import repeated
from torch import Tensor

import memcore
from memcore.evaluation.passkey import ANSWER_TOKENS
from memcore.evaluation.record import Record
from memcore.evaluation.vaults import Hidden, with_keys
from memcore.evaluation.ways import memory_for
from memcore.model_source import load_model
from memcore.reader import answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PERSISTENT: Final = "memory:lmdb"


@attrs.frozen(kw_only=True)
class Cell:
    """What to read, and how.

    Attributes:
        model: hub id or folder.
        dtype: of weights and activations.
        way: ``full``, ``streaming`` or ``memory:BACKEND``.
        tokens: how many to read.
        config: fields of the memory's configuration.
        options: of backends, by their names, beside what the configuration says of one.
        files: texts to read.
        depths: where keys are hidden.
        seed: which ones.
        first: tokens at the first checkpoint; at each next one it is twice as many.
        stretch: tokens before a checkpoint that its speed is taken from, at most.
        decode: tokens generated at each checkpoint.
        seconds: reading that has taken longer stops, but not before its first checkpoint.
        folder: for a memory on disk and the measurements so far.
    """

    model: str
    dtype: str
    way: str
    tokens: int
    config: dict[str, Any]
    options: dict[str, dict[str, Any]]
    files: list[str]
    depths: list[float]
    seed: int
    first: int
    stretch: int
    decode: int
    seconds: float
    folder: Path = attrs.field(converter=Path)

    def boundaries(self, memory: memcore.MemoryConfig) -> list[int]:
        """Return the checkpoints: the last whole piece that a memory makes up to each of them, and the end."""
        room, segment = memory.window_length + memory.sinks, memory.segment_length
        wanted = itertools.takewhile(lambda n: n < self.tokens, (self.first << n for n in itertools.count()))
        whole = (n if n <= room else room + (n - room) // segment * segment for n in wanted)
        return sorted({*whole, self.tokens})


class OutOfTimeError(Exception):
    """Reading has taken as long as it may."""


class Clock:
    """Time and memory of reading, without the breaks for measurements."""

    def __init__(self, level: Resident, begun: int) -> None:
        """Take what the bare model holds, and how many tokens others have read."""
        self._level, self._notes, self._since = level, [(begun, 0.0)], 0.0
        self.most = Resident(anonymous=0, mapped=0)

    @property
    def seconds(self) -> float:
        """Seconds of reading so far."""
        return self._notes[-1][1]

    def go_on(self) -> None:
        """Begin, or end a break."""
        self._since = time.perf_counter() - self.seconds

    def note(self, done: int, _: int) -> None:
        """Take note of how many tokens were read by now."""
        if done > self._notes[-1][0]:
            self._notes.append((done, time.perf_counter() - self._since))
        self.most = self.most.most(Resident.now().above(self._level))

    def rate(self, stretch: int) -> float | None:
        """Return the tokens a second of the last ``stretch`` tokens; None if nothing was read."""
        (done, now), *earlier = reversed(self._notes)
        within = [note for note in earlier if note[0] >= done - stretch] or earlier[:1]
        return (done - within[-1][0]) / (now - within[-1][1]) if within else None


def config_of(cell: Cell) -> memcore.MemoryConfig | None:
    """Return the memory that a cell reads with, or None."""
    memory = memory_for(cell.way, memcore.MemoryConfig(**cell.config))
    if memory is None:
        return None
    where = {"path": str(cell.folder / "memory")} if cell.way == PERSISTENT else {}
    return attrs.evolve(
        memory, backend_options={**cell.options.get(memory.backend, {}), **memory.backend_options, **where}
    )


def start(cell: Cell, model: Any) -> Reading:
    """Return a reading at its beginning, or where it stopped."""
    memory = config_of(cell)
    if memory is None:
        return Plain(model)
    memcore.wrap(model, memory)
    return OnDisk(model) if cell.way == PERSISTENT else InMemory(model)


def decode(reading: Reading, token: Tensor, steps: int) -> list[float]:
    """Return the milliseconds of each of some tokens, generated greedily after ``[1, 1]``."""
    cache, took = reading.copy(), []
    for _ in range(steps):
        begun = time.perf_counter()
        logits = reading.model(input_ids=token, past_key_values=cache, use_cache=True).logits
        token = logits[:, -1:].argmax(dim=-1)
        took.append(1000 * (time.perf_counter() - begun))
    return took


def disk_bytes(folder: Path) -> int:
    """Return the bytes that the files of a folder take on disk."""
    return sum(512 * path.stat().st_blocks for path in folder.rglob("*") if path.is_file())


def ask(
    reading: Reading, tokenizer: PreTrainedTokenizerBase, ids: Tensor, hidden: list[Hidden]
) -> list[dict[str, Any]]:
    """Ask for every key at the end."""
    answers = []
    for each in hidden:
        said = answer(
            reading.model,
            tokenizer,
            read=ids,
            question=each.question,
            cache=reading.copy(),
            max_new_tokens=ANSWER_TOKENS,
        )
        found = each.key in said.text
        answers.append({"key": each.key, "depth": each.depth, "answer": said.text, "found": found})
    return answers


@torch.no_grad()
def measure(cell: Cell) -> dict[str, Any]:
    """Read, and measure at every checkpoint."""
    config = memcore.MemoryConfig(**cell.config)
    model: Any
    model, tokenizer = load_model(cell.model, device="cpu", dtype=cell.dtype)
    text, times = repeated(tokenizer, [Path(path) for path in cell.files], cell.tokens)
    ids, hidden = with_keys(tokenizer, text, cell.depths, cell.seed)
    model(input_ids=ids[:, :8])  # only now are the weights in memory, all of them
    level = Resident.now()
    so_far = cell.folder / "checkpoints.json"
    if cell.way != PERSISTENT:
        so_far.unlink(missing_ok=True)
    # How long it may take, and where it is kept, changes nothing about what is measured.
    settings = attrs.asdict(cell, filter=lambda field, _: field.name not in ("seconds", "folder"))
    record = Record(so_far, "long reading", settings)
    reading = start(cell, model)
    clock = Clock(level, reading.done)
    measured, stopped = 0, False

    def note(done: int, of: int) -> None:
        clock.note(done, of)
        if measured and done < of and clock.seconds > cell.seconds:
            raise OutOfTimeError

    for end in cell.boundaries(config):
        if str(end) in record.results:
            continue
        clock.go_on()
        try:
            if reading.done < end:
                reading.read(ids, end, note)
            note(end, end)
        except OutOfTimeError:
            stopped = True
            break
        rate = clock.rate(cell.stretch)
        done = {
            "tokens_per_second": rate,
            "decode_ms": decode(reading, ids[:, end - 1 : end], cell.decode),
            "now": dataclasses.asdict(Resident.now().above(level)),
            "most": dataclasses.asdict(clock.most),
            "disk": disk_bytes(cell.folder / "memory"),
        }
        record.add(str(end), done)
        speed = "-" if rate is None else f"{rate:,.0f}"
        print(f"{cell.way}: {end:,} of {cell.tokens:,} tokens read, {speed} a second", file=sys.stderr, flush=True)
        measured += 1
    return {
        "checkpoints": record.results,
        "keys": [] if stopped else ask(reading, tokenizer, ids, hidden),
        "text_read_times": times,
        "seconds": clock.seconds,
        "stopped": stopped,
        "bare": dataclasses.asdict(level),
    }


if __name__ == "__main__":
    print(json.dumps(measure(Cell(**json.loads(sys.argv[1])))))
