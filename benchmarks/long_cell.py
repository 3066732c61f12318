"""One reading of a long text in a process of its own: ``long.py`` starts it.

Gets one argument, JSON: the fields of :class:`Cell`. Prints what was measured as JSON.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from resident import Resident
from texts import Hidden, repeated, with_keys
from torch import Tensor
from transformers import DynamicCache

import memcore
from memcore.evaluation.passkey import ANSWER_TOKENS
from memcore.evaluation.record import Record
from memcore.evaluation.ways import PIECE, memory_for
from memcore.reader import Progress, answer, load_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PERSISTENT: Final = "memory:lmdb"


@attrs.frozen(kw_only=True)
class Cell:
    """What to read, and how.

    Attributes:
        model: hub id or folder.
        dtype: of weights and activations.
        way: ``full``, ``offloaded``, ``streaming`` or ``memory:BACKEND``.
        tokens: how many to read.
        config: fields of the memory's configuration.
        files: texts to read.
        depths: where keys are hidden.
        seed: which ones.
        first: tokens at the first checkpoint; at each next one it is twice as many.
        stretch: tokens before a checkpoint that its speed is taken from, at most.
        decode: tokens generated at each checkpoint.
        seconds: reading that has taken longer stops at its next checkpoint.
        folder: for a memory on disk and the measurements so far.
    """

    model: str
    dtype: str
    way: str
    tokens: int
    config: dict[str, Any]
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
        room, segment = memory.window + memory.sinks, memory.segment_length
        wanted = itertools.takewhile(lambda n: n < self.tokens, (self.first << n for n in itertools.count()))
        whole = (n if n <= room else room + (n - room) // segment * segment for n in wanted)
        return sorted({*whole, self.tokens})


class Reading(ABC):
    """A text that is being read.

    Attributes:
        done: tokens read.
    """

    done: int = 0

    def __init__(self, model: Any) -> None:
        """Take a model, wrapped if it shall have a memory."""
        self.model = model

    @abstractmethod
    def read(self, ids: Tensor, end: int, progress: Progress) -> None:
        """Read on in ``[1, T]`` token ids up to ``end``; ``progress`` is told how many tokens were read in all."""

    @abstractmethod
    def copy(self) -> Any:
        """Return ``past_key_values`` to go on with, which leaves the reading as it is."""


class Plain(Reading):
    """Full attention, in pieces."""

    def __init__(self, model: Any, *, offloading: bool) -> None:
        """Take a model, and whether transformers puts away what a layer does not need now."""
        super().__init__(model)
        self._cache = DynamicCache(config=model.config, offloading=offloading)

    def read(self, ids: Tensor, end: int, progress: Progress) -> None:
        """See :meth:`Reading.read`."""
        while self.done < end:
            piece = ids[:, self.done : min(end, self.done + PIECE)]
            self.model(input_ids=piece, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            self.done += piece.shape[1]
            progress(self.done, end)

    def copy(self) -> Any:
        """See :meth:`Reading.copy`."""
        return copy.deepcopy(self._cache)


class InMemory(Reading):
    """A memory, or a window with sinks, that goes with the process."""

    def __init__(self, model: Any) -> None:
        """Take a wrapped model."""
        super().__init__(model)
        self._cache = model.memory.new_cache()

    def read(self, ids: Tensor, end: int, progress: Progress) -> None:
        """See :meth:`Reading.read`."""
        begin = self.done
        with self.model.memory.reading(lambda done, _: progress(begin + done, end), question=False):
            self.model(input_ids=ids[:, begin:end], past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self.done = end
        progress(end, end)

    def copy(self) -> Any:
        """See :meth:`Reading.copy`."""
        return copy.deepcopy(self._cache)


class OnDisk(Reading):
    """A session on disk, which goes on where an earlier process stopped."""

    def __init__(self, model: Any) -> None:
        """Take a wrapped model."""
        super().__init__(model)
        self._session = memcore.Session(model, "long")
        self.done = self._session.tokens

    def read(self, ids: Tensor, end: int, progress: Progress) -> None:
        """See :meth:`Reading.read`."""
        left = self._session.info.unfinished
        begin = self.done - (0 if left is None else left.done)
        self._session.ingest(ids[0, begin:end], progress=lambda done, _: progress(begin + done, end))
        self.done = end

    def copy(self) -> Any:
        """See :meth:`Reading.copy`."""
        return self._session.cache()


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


def start(cell: Cell, model: Any) -> Reading:
    """Return a reading at its beginning, or where it stopped."""
    memory = (
        memory_for(cell.way, memcore.MemoryConfig(**cell.config)) if cell.way not in ("full", "offloaded") else None
    )
    if memory is None:
        return Plain(model, offloading=cell.way == "offloaded")
    if cell.way == PERSISTENT:
        memory = attrs.evolve(memory, backend_options={**memory.backend_options, "path": str(cell.folder / "memory")})
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
    stopped = False
    for end in cell.boundaries(config):
        if str(end) in record.results or stopped:
            continue
        clock.go_on()
        if reading.done < end:
            reading.read(ids, end, clock.note)
        clock.note(end, end)
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
        stopped = clock.seconds > cell.seconds and end < cell.tokens
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
