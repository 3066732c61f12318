"""Sessions that are read into, copied and dropped, and what they should be after each step."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import attrs
import torch
from tiny_models import random_tokens, tiny_model

import memcore
from memcore import MemoryConfig, Session
from memcore.memory import Memory
from memcore.session_store import SessionStore
from memcore.testing.chunks import bits
from reliability.forking import say
from reliability.interrupting import block_interrupts, was_interrupted
from reliability.killing import die_at_step

CONFIG: Final = MemoryConfig(window=32, sinks=2, chunk_size=4, top_k=3, query_tokens=4, question_tokens=4)
TEXT: Final = random_tokens(1, 300, seed=1)
MORE: Final = random_tokens(1, 90, seed=2)

States = dict[str, list[Any]]
"""Tokens and a digest of everything, of each session by name."""


def wrapped(path: str, write_buffer: int) -> Any:
    options = {"path": path, "write_buffer": write_buffer, "sync": False}
    return memcore.wrap(tiny_model("llama"), attrs.evolve(CONFIG, backend="lmdb", backend_options=options))


def steps(model: Any) -> list[Callable[[], None]]:
    """Return what is done, one after the other. What was done already is not done again."""
    sessions = model.memory.sessions

    def ingest(name: str, text: torch.Tensor, tokens: int) -> None:
        session = Session(model, name)
        if session.tokens < tokens:
            session.ingest(text, checkpoint_tokens=64)

    def copy(source: str, target: str) -> None:
        if target not in sessions:
            sessions.copy(source, target)

    def drop(name: str) -> None:
        if name in sessions:
            sessions.drop(name)

    return [
        functools.partial(ingest, "book", TEXT, 300),
        functools.partial(copy, "book", "twin"),
        functools.partial(ingest, "twin", MORE, 390),
        functools.partial(copy, "twin", "third"),
        functools.partial(drop, "book"),
    ]


def states_of(memory: Memory) -> States:
    """Return what all sessions are."""
    found: States = {}
    for info in memory.sessions.infos():
        digest = hashlib.sha256()
        _, state = memory.sessions.load(info.name)
        # Ids are not used again: those of chunks that were stored after a checkpoint and read again are others.
        for name in sorted(name for name in state if not name.endswith(".ids")):
            digest.update(name.encode() + state[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        for layer in sorted(info.next_ids):
            namespace = info.namespace(layer)
            ids = memory.bank.ids(namespace)
            if ids.numel():
                chunks = memory.bank.fetch(namespace, ids)
                for tensor in (chunks.embeddings, chunks.keys, chunks.values):
                    digest.update(bits(tensor).numpy().tobytes())
                digest.update(chunks.token_ids.numpy().tobytes() + chunks.starts.numpy().tobytes())
        found[info.name] = [info.tokens, digest.hexdigest()]
    return found


def record(path: str, target: str) -> None:
    """Do all steps without being killed, and write down every state that a crash may leave, with the step it is in."""
    torch.set_num_threads(1)
    model = wrapped(path, 1 << 28)
    states: list[tuple[int, States]] = [(0, {})]
    begun: list[Callable[[], None]] = []
    save, drop = SessionStore.save, SessionStore.drop

    def saving(store: SessionStore, *arguments: Any) -> None:
        save(store, *arguments)
        states.append((len(begun), states_of(model.memory)))

    def dropping(store: SessionStore, name: str) -> None:
        drop(store, name)
        states.append((len(begun), states_of(model.memory)))

    SessionStore.save = saving  # type: ignore[method-assign, assignment]
    SessionStore.drop = dropping  # type: ignore[method-assign, assignment]
    for step in steps(model):
        begun.append(step)
        step()
    memcore.unwrap(model)
    Path(target).write_text(json.dumps(states))


def run(path: str, write_buffer: int, die_after: int) -> None:
    """Do all steps, and say which are done."""
    torch.set_num_threads(1)
    model = wrapped(path, write_buffer)
    die_at_step(die_after)
    for number, step in enumerate(steps(model), 1):
        step()
        say(number)
    memcore.unwrap(model)


def check(path: str, record: str, done: int) -> None:
    """Open what a killed process has left; see that it is a state of the record, and go on to the end."""
    torch.set_num_threads(1)
    states: list[tuple[int, States]] = [(step, each) for step, each in json.loads(Path(record).read_text())]
    model = wrapped(path, 1 << 28)
    memory: Memory = model.memory
    persistent = memory.bank.persistent
    assert persistent is not None
    for name in memory.sessions.names():
        Session(model, name)
    allowed = [each for step, each in states if step > done] + [[each for step, each in states if step <= done][-1]]
    found = states_of(memory)
    assert found in allowed, f"{found} after {done} steps"
    rows = {f"session/{name}" for name in memory.sessions.names()}
    assert {name.rpartition("/layer")[0] for name in persistent.namespaces()} <= rows
    assert not [name for name in persistent.record_names() if name.startswith("session-copy/")]
    assert persistent.verify() == []
    for step in steps(model):
        if "twin" in memory.sessions or "book" in memory.sessions or not memory.sessions.names():
            step()
    assert states_of(memory) == states[-1][1]
    memcore.unwrap(model)
    say("whole")


def interrupted(path: str, record: str) -> None:
    """Read a text while the test sends SIGINT, as often as that stops it, and see that it makes no difference."""
    torch.set_num_threads(1)
    block_interrupts()
    model = wrapped(path, 1 << 28)
    session = Session(model, "book")
    say("begun")
    while was_interrupted(functools.partial(session.ingest, TEXT, checkpoint_tokens=64)):
        say("interrupted")
        if session.tokens == 300 and session.info.unfinished is None:
            break
    states = [each for _, each in json.loads(Path(record).read_text())]
    assert states_of(model.memory) == next(each for each in states if each.get("book", [0])[0] == 300)
    memcore.unwrap(model)
    say("whole")
