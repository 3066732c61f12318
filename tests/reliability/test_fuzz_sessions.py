"""States of sessions that were made to harm: a session opens as it was, or is refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from tiny_models import random_tokens, tiny_model

import memcore
from memcore import MemoryConfig, Session
from memcore.errors import CorruptedError, MemcoreError, TrainingError
from memcore.records import Records
from memcore.session_store import SessionStore
from memcore.training.memory_state import load_memory, save_memory

CONFIG = MemoryConfig(window=32, sinks=2, chunk_size=4, top_k=3, query_tokens=4, question_tokens=4)
IDS = random_tokens(1, 80, seed=1)
NAME = "book"
STATE = f"session-state/{NAME}"


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def model(request: pytest.FixtureRequest) -> Any:
    wrapped = memcore.wrap(tiny_model(request.param), CONFIG)
    Session(wrapped, NAME).ingest(IDS)
    return wrapped


def changed(state: dict[str, torch.Tensor], choice: random.Random) -> dict[str, torch.Tensor]:
    """Return a state in which one tensor is missing, of another kind or shape, or none of its own."""
    name = choice.choice(sorted(state))
    kept, tensor = dict(state), state[name]
    changes: list[Any] = [
        lambda: kept.pop(name),
        lambda: kept.update({name: tensor.to(torch.bfloat16)}),
        lambda: kept.update({name: tensor.to(torch.bool)}),
        lambda: kept.update({name: tensor.flatten()}),
        lambda: kept.update({name: tensor.unsqueeze(0)}),
        lambda: kept.update({name: torch.cat((tensor, tensor)) if tensor.ndim else tensor}),
        lambda: kept.update({name: tensor[..., :0] if tensor.ndim else tensor}),
        lambda: kept.update({name: -tensor.long()}),
        lambda: kept.update({name: choice.choice(list(state.values()))}),
    ]
    choice.choice(changes)()
    return {each: tensor.clone().contiguous() for each, tensor in kept.items()}


def test_changed_states_of_a_session_are_refused_or_open(model: Any) -> None:
    records: Records = model.memory.bank.records
    sound = records.read(STATE) or b""
    state = load(sound)
    choice, refused = random.Random(3), 0
    for _ in range(120):
        records.write(STATE, save(changed(state, choice)))
        try:
            Session(model, NAME, create=False)
        except MemcoreError:
            refused += 1
    records.write(STATE, sound)
    assert refused > 40
    assert Session(model, NAME).token_ids().tolist() == IDS.tolist()


@pytest.mark.parametrize(
    "messages", [b"[", b"[" * 100_000, b"{}", b'["x"]', b'[{"role": 3, "content": "x"}]', b'[{"role": "user"}]']
)
def test_messages_of_another_kind_are_refused(model: Any, messages: bytes) -> None:
    records: Records = model.memory.bank.records
    sound = records.read(STATE) or b""
    state = load(sound)
    state["messages"] = torch.frombuffer(bytearray(messages), dtype=torch.uint8)
    records.write(STATE, save(state))
    with pytest.raises(CorruptedError, match=f"session '{NAME}'"):
        Session(model, NAME, create=False)
    records.write(STATE, sound)


def test_a_session_that_says_to_be_another_is_refused(model: Any) -> None:
    store: SessionStore = model.memory.sessions
    records: Records = model.memory.bank.records
    records.write("session/other", records.read(f"session/{NAME}") or b"")
    with pytest.raises(CorruptedError, match=f"is that of session '{NAME}'"):
        store.info("other")
    records.drop("session/other")


def test_changed_memories_of_a_training_are_refused_or_read(model: Any, tmp_path: Path) -> None:
    cache = model.memory.new_cache()
    with torch.no_grad():
        model(IDS, past_key_values=cache, use_cache=True)
    file = tmp_path / "memory.safetensors"
    save_memory(cache, file)
    state = load(file.read_bytes())
    choice, refused = random.Random(4), 0
    for _ in range(60):
        file.write_bytes(save(changed(state, choice)))
        try:
            load_memory(model.memory, file, torch.device("cpu"))
        except MemcoreError:
            refused += 1
    assert refused > 20
    file.write_bytes(b"none")
    with pytest.raises(TrainingError, match="cannot be read"):
        load_memory(model.memory, file, torch.device("cpu"))
