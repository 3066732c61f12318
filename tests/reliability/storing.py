"""A random mix of calls on an lmdb memory, and what it should hold after each of them."""

from __future__ import annotations

import copy
import functools
import random
from pathlib import Path
from typing import Any, Final

import attrs
import torch
from memcore_lmdb.backend import LmdbBackend
from memcore_lmdb.options import LmdbOptions

from memcore.chunk import ChunkBatch
from memcore.testing import assert_same_chunks, make_chunks, select
from memcore.testing.contents import contents_of
from reliability.forking import say
from reliability.interrupting import block_interrupts, was_interrupted
from reliability.killing import prepare

Chain = list[list[int]]
"""How a memory came to be: pairs of a seed and of how many of its calls were done."""

_NAMES: Final = ("a", "b", "c", "d")
_DURABLE: Final = ("flush", "compact", "reopen", "copy")
"""Calls after which all before are committed."""

_ALL: Final = 8
"""Chunks made with one seed."""


@attrs.define
class State:
    """What a memory should hold.

    Attributes:
        chunks: by namespace and id, as seed and row of what :func:`chunks_of` makes.
        next_ids: of each namespace.
        records: by name.
    """

    chunks: dict[str, dict[int, tuple[int, int]]] = attrs.field(factory=dict)
    next_ids: dict[str, int] = attrs.field(factory=dict)
    records: dict[str, bytes] = attrs.field(factory=dict)


Call = tuple[str, dict[str, Any]]


def chunks_of(seed: int) -> ChunkBatch:
    return make_chunks(_ALL, seed=seed, width=12, key_size=16, value_size=16)


def draw(choice: random.Random, state: State) -> Call:
    """Choose a call that fits the state."""
    name = choice.choice(_NAMES)
    kind = choice.choices(
        ("store", "evict", "drop", "copy", "record", "flush", "compact", "reopen"), (8, 3, 1, 1, 2, 4, 1, 1)
    )[0]
    held = state.chunks.get(name, {})
    if kind == "store" or (kind in ("evict", "copy") and not held):
        return "store", {"name": name, "count": choice.randrange(1, _ALL + 1), "seed": choice.randrange(10**6)}
    if kind == "evict":
        return kind, {"name": name, "ids": sorted(choice.sample(sorted(held), choice.randrange(1, len(held) + 1)))}
    if kind == "drop":
        return kind, {"name": name}
    if kind == "copy":
        return kind, {"name": name, "target": choice.choice([each for each in _NAMES if each != name])}
    if kind == "record":
        return kind, {
            "name": name,
            "value": choice.randbytes(choice.choice((0, 10, 9000))) if choice.random() < 0.8 else None,
        }
    return kind, {}


def expect(state: State, call: Call) -> State:
    """Return the state after a call."""
    after = copy.deepcopy(state)
    kind, given = call
    name = given.get("name", "")
    if kind == "store":
        first = after.next_ids.get(name, 0)
        held = after.chunks.setdefault(name, {})
        held.update({first + row: (given["seed"], row) for row in range(given["count"])})
        after.next_ids[name] = first + given["count"]
    elif kind == "evict":
        for id in given["ids"]:
            del after.chunks[name][id]
    elif kind == "drop":
        after.chunks.pop(name, None)
        after.next_ids.pop(name, None)
    elif kind == "copy":
        after.chunks[given["target"]] = dict(after.chunks[name])
        after.next_ids[given["target"]] = after.next_ids[name]
    elif kind == "record":
        if given["value"] is None:
            after.records.pop(name, None)
        else:
            after.records[name] = given["value"]
    return after


def states(chain: Chain) -> tuple[list[State], list[Call]]:
    """Return the states of the last part of a chain, from its beginning on, and the calls between them."""
    state = State()
    for seed, count in chain:
        choice, reached, calls = random.Random(seed), [state], []
        for _ in range(count):
            calls.append(draw(choice, reached[-1]))
            reached.append(expect(reached[-1], calls[-1]))
        state = reached[-1]
    return reached, calls


def options_of(path: str, seed: int) -> LmdbOptions:
    """Return options that differ from seed to seed: little room, so that commits come at any time and the map grows."""
    return LmdbOptions(
        path=Path(path),
        map_size=1 << 16,
        write_buffer=(20_000, 200_000, 1 << 28)[seed % 3],
        sync=seed % 2 == 0,
    )


def run(path: str, chain: Chain, how: dict[str, Any]) -> None:
    """Make the calls of the last part of a chain, and say which begin and which commits are done."""
    torch.set_num_threads(1)
    seed, count = chain[-1]
    _, calls = states(chain)
    prepare(how)
    backend = LmdbBackend(options_of(path, seed))
    say(["begun", 0])
    for number, (kind, given) in enumerate(calls, 1):
        say(["begun", number])
        if kind == "reopen":
            backend.close()
            backend = LmdbBackend(options_of(path, seed))
        else:
            _do(backend, kind, given)
        if kind in _DURABLE:
            say(["durable", number])
    backend.close()
    say(["durable", count])


def _do(backend: LmdbBackend, kind: str, given: dict[str, Any]) -> None:
    name = given.get("name", "")
    if kind == "store":
        backend.store(name, select(chunks_of(given["seed"]), slice(given["count"])))
    elif kind == "evict":
        backend.evict(name, torch.tensor(given["ids"]))
    elif kind == "drop":
        backend.drop(name)
    elif kind == "copy":
        backend.copy(name, given["target"])
    elif kind == "record":
        if given["value"] is None:
            backend.drop_record(name)
        else:
            backend.write_record(name, given["value"])
    elif kind == "flush":
        backend.flush()
    else:
        backend.compact()


def check(path: str, chain: Chain, durable: int) -> None:
    """Open what a killed process has left, for writing, and say how many calls of the chain's last part are in it."""
    torch.set_num_threads(1)
    with LmdbBackend(options_of(path, 2)) as backend:
        assert backend.verify() == []
        reached, _ = states(chain)
        for number in range(durable, len(reached)):
            if _holds(backend, reached[number]):
                say(number)
                break
        else:
            raise AssertionError(f"after {chain}, of which {durable} were durable, it holds {contents_of(backend)}")
    with LmdbBackend(LmdbOptions(path=Path(path), read_only=True)) as backend:
        assert _holds(backend, reached[number])


def _holds(backend: LmdbBackend, state: State) -> bool:
    """Return whether a memory holds what it should, bit for bit."""
    found = contents_of(backend)
    want = {name: held for name, held in state.chunks.items() if held}
    if {name: list(held) for name, held in found.chunks.items()} != {name: list(held) for name, held in want.items()}:
        return False
    if found.records != state.records:
        return False
    for name, held in want.items():
        for id, (seed, row) in held.items():
            try:
                assert_same_chunks(found.chunks[name][id], select(chunks_of(seed), slice(row, row + 1)))
            except AssertionError:
                return False
    return True


def interrupted(path: str, seed: int, count: int) -> None:
    """Make calls while the test sends SIGINT; a call that was interrupted is either done or can be done again."""
    torch.set_num_threads(1)
    block_interrupts()
    reached, calls = states([[seed, count]])
    backend = LmdbBackend(options_of(path, seed))
    say("begun")
    for number, (kind, given) in enumerate(calls):
        while kind != "reopen" and was_interrupted(functools.partial(_do, backend, kind, given)):
            say("interrupted")
            if _holds(backend, reached[number + 1]):
                break
            assert _holds(backend, reached[number])
    while was_interrupted(backend.close):
        say("interrupted")
    say("done")
