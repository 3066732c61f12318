"""Conversations on tiny models with a tokenizer of single characters, so that every text has one encoding."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from character_tokenizer import END, TEMPLATE, character_tokenizer
from tiny_models import tiny_model
from transformers import LogitsProcessor, LogitsProcessorList

import memcore
from memcore import Chat, MemoryConfig, Session
from memcore.errors import (
    NotWrappedError,
    ReadOnlyError,
    SessionError,
    UnsupportedInputError,
    UnsupportedModelError,
)

CONFIG = MemoryConfig(window=32, sinks=2, chunk_size=4, top_k=3, query_tokens=4, question_tokens=4)
EVERYTHING = attrs.evolve(CONFIG, top_k=10_000, positions="original", retrieve_every=1)
SAYINGS = ["My cat is called Moth.", "It is black.", "What is my cat called?", "Thank you."]


class EndsAtTimes(LogitsProcessor):
    """Ends a turn where the whole has a certain length: a random model seldom does it by itself."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(1, torch.tensor([END]), 1e9) if input_ids.shape[1] % 30 == 7 else scores


OFTEN_ENDS: dict[str, Any] = {
    "max_new_tokens": 16,
    "repetition_penalty": 1.5,
    "logits_processor": LogitsProcessorList([EndsAtTimes()]),
}

# Leaves out what was thought in earlier turns, and thinks aloud in the next.
THINKING = (
    "{% for each in messages %}[{{ each.role }}]\n{{ each.content.split('#')[-1] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n#{% endif %}"
)


def wrapped(family: str = "llama", config: MemoryConfig = CONFIG, **options: Any) -> Any:
    return memcore.wrap(tiny_model(family), attrs.evolve(config, **options))


def on_disk(path: Path, **options: Any) -> dict[str, Any]:
    pytest.importorskip("lmdb", reason="lmdb is not installed")
    return {"backend": "lmdb", "backend_options": {"path": str(path), **options}}


def encoded(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def written(tokenizer: Any, says: list[str], reply: Callable[[list[int]], list[int]]) -> list[int]:
    """Write a conversation down by hand: what is said, and what ``reply`` gives for all ids before it."""
    template = tokenizer.chat_template is not None
    ids: list[int] = []
    for index, text in enumerate(says):
        end = ("<end>\n" if template else "\n") if index else ""
        turn = f"[user]\n{text}<end>\n[assistant]\n" if template else f"User: {text}\nAssistant:"
        ids += encoded(tokenizer, end + turn)
        ids += [each for each in reply(ids) if each != END]
    return ids + encoded(tokenizer, "<end>\n[user]\n" if template else "\nUser:")


def forced(tokenizer: Any, text: str) -> dict[str, Any]:
    """Arguments of ``generate()`` that make it write a text."""

    class Force(LogitsProcessor):
        def __init__(self) -> None:
            self.left = encoded(tokenizer, text)

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            wanted = self.left.pop(0)
            return torch.full_like(scores, -1e9).index_fill(1, torch.tensor([wanted]), 0.0)

    return {"logits_processor": LogitsProcessorList([Force()]), "max_new_tokens": len(encoded(tokenizer, text))}


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("template", [TEMPLATE, None], ids=["template", "plain"])
def test_with_full_recall_it_says_what_the_plain_model_says_to_the_whole_transcript(
    family: str, template: str | None
) -> None:
    tokenizer, plain = character_tokenizer(template), tiny_model(family)
    lengths = []

    def reply(ids: list[int]) -> list[int]:
        prompt = torch.tensor([ids])
        # Random models say <pad> like anything else.
        seen = {"attention_mask": torch.ones_like(prompt), "pad_token_id": 0, "eos_token_id": END}
        out = plain.generate(prompt, do_sample=False, **seen, **OFTEN_ENDS)
        lengths.append(out.shape[1] - len(ids))
        new: list[int] = out[0, len(ids) :].tolist()
        return new

    expected = written(tokenizer, SAYINGS * 2, reply)
    chat = Chat(wrapped(family, EVERYTHING), tokenizer)
    for text in SAYINGS * 2:
        chat.say(text, **OFTEN_ENDS)
    assert chat.token_ids()[0].tolist() == expected
    assert len(expected) > 5 * CONFIG.window_length
    assert min(lengths) < 16 == max(lengths)  # both ways to end a reply were there


def test_messages_and_tokens_tell_what_was_said() -> None:
    chat = Chat(wrapped(), character_tokenizer(), system=" Be brief. ")
    replies = [chat.say(text, **OFTEN_ENDS).text for text in SAYINGS]
    said = [("system", "Be brief.")]
    for text, reply in zip(SAYINGS, replies, strict=True):
        said += [("user", text), ("assistant", reply)]
    assert [(each["role"], each["content"]) for each in chat.messages] == said
    assert chat.tokens == chat.token_ids().shape[1]
    assert chat.session is None


def test_pieces_heard_make_up_the_reply_and_passages_tell_where_it_looked() -> None:
    chat = Chat(wrapped(), character_tokenizer())
    for text in SAYINGS:
        pieces: list[str] = []
        reply = chat.say(text, on_text=pieces.append, **OFTEN_ENDS)
        assert "".join(pieces) == reply.text
    assert len(pieces) > 1
    ids = chat.token_ids()[0]
    assert reply.passages
    for passage in reply.passages:
        assert torch.equal(passage.token_ids, ids[passage.start : passage.start + CONFIG.chunk_size])


def test_sampling_depends_on_the_seed_only() -> None:
    heard, model = [], wrapped()
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        heard.append(Chat(model, character_tokenizer()).say("Hi", do_sample=True, max_new_tokens=9).text)
    assert heard[0] == heard[1] != heard[2]


def test_a_reply_that_is_stopped_is_kept_as_far_as_it_came() -> None:
    tokenizer = character_tokenizer()
    chat = Chat(wrapped(), tokenizer)
    chat.say(SAYINGS[0], **OFTEN_ENDS)
    before = chat.tokens
    heard: list[str] = []

    def hear(piece: str) -> None:
        heard.append(piece)
        if len(heard) == 3:
            chat.stop()

    reply = chat.say("Go on", on_text=hear, **forced(tokenizer, "abcdefgh"))
    assert (reply.text, heard) == ("abc", ["a", "b", "c"])
    assert chat.messages[-1] == {"role": "assistant", "content": "abc"}
    expected = encoded(tokenizer, "Go on<end>\n[assistant]\nabc<end>\n[user]\n")
    assert chat.token_ids()[0, before:].tolist() == expected
    assert chat.say("Go on", **forced(tokenizer, "xyz")).text == "xyz"


@pytest.mark.parametrize("disk", [False, True], ids=["fleeting", "session"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_turn_that_fails_did_not_happen(tmp_path: Path, family: str, disk: bool) -> None:
    options = on_disk(tmp_path / "memory") if disk else {}
    model = wrapped(family, **options)
    twin = wrapped(family)
    chat, undisturbed = Chat(model, character_tokenizer(), "anna" if disk else None), Chat(twin, character_tokenizer())
    for each in (chat, undisturbed):
        for text in SAYINGS:
            each.say(text, **OFTEN_ENDS)
    calls = []

    def interrupt(*_: object) -> None:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt

    handle = model.get_decoder().layers[1].register_forward_pre_hook(interrupt)
    messages, ids = chat.messages, chat.token_ids()
    with pytest.raises(KeyboardInterrupt):
        chat.say("This is in vain", **OFTEN_ENDS)
    handle.remove()
    assert chat.messages == messages
    assert torch.equal(chat.token_ids(), ids)
    for text in ("Another thing:", "how old are you?"):
        assert chat.say(text, **OFTEN_ENDS).text == undisturbed.say(text, **OFTEN_ENDS).text
    assert torch.equal(chat.token_ids(), undisturbed.token_ids())
    memcore.unwrap(model)


def test_a_fleeting_chat_leaves_nothing_behind() -> None:
    model = wrapped()
    chat = Chat(model, character_tokenizer())
    for text in SAYINGS:
        chat.say(text, **OFTEN_ENDS)
    assert model.memory.bank.namespaces()
    del chat
    assert model.memory.bank.namespaces() == []


def test_a_model_that_speaks_for_the_user_is_stopped_there() -> None:
    tokenizer = character_tokenizer(None)
    chat = Chat(wrapped(), tokenizer)
    for written_on in (" yes\nUser: and so on", "\n\nUser: x", " a\nUs", " a\nUser b\nUser:"):
        heard: list[str] = []
        reply = chat.say("Well?", on_text=heard.append, **forced(tokenizer, written_on))
        assert reply.text == "".join(heard) == written_on.split("\nUser:")[0].strip()
    expected = "User: Well?\nAssistant: yes\nUser: Well?\nAssistant:\n\nUser: Well?\nAssistant: a\nUs\nUser: Well?"
    assert chat.token_ids()[0].tolist() == encoded(tokenizer, f"{expected}\nAssistant: a\nUser b\nUser:")


def test_what_a_template_leaves_out_of_earlier_turns_stays_in_memory_as_it_was_said() -> None:
    tokenizer = character_tokenizer(THINKING)
    chat = Chat(wrapped(), tokenizer)
    chat.say("One", **forced(tokenizer, "hm#1<end>"))
    chat.say("Two", **forced(tokenizer, "ha#2"))
    expected = "[user]\nOne<end>\n[assistant]\n#hm#1<end>\n[user]\nTwo<end>\n[assistant]\n#ha#2<end>\n[user]\n"
    assert chat.token_ids()[0].tolist() == encoded(tokenizer, expected)


@pytest.mark.parametrize(
    ("template", "error", "says"),
    [
        ("[user]", UnsupportedModelError, "leaves out what the user says"),
        ("{{ messages[-1].content }}:", UnsupportedModelError, "leaves out the reply before"),
        ("{{ raise_exception('no cats') }}", UnsupportedInputError, "does not take messages of user.*no cats"),
    ],
)
def test_a_template_that_cannot_be_followed_is_refused(template: str, error: type[Exception], says: str) -> None:
    model, tokenizer = wrapped(), character_tokenizer(template)
    with pytest.raises(error, match=says):
        Chat(model, tokenizer).say("Hi", max_new_tokens=2)


def test_a_template_without_a_system_message_says_so() -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
    with pytest.raises(UnsupportedInputError, match="of system, user: no system"):
        Chat(wrapped(), character_tokenizer(template), system="Be brief.")


@pytest.mark.parametrize("template", [TEMPLATE, None], ids=["template", "plain"])
@pytest.mark.parametrize("named", [False, True], ids=["fleeting", "session"])
def test_a_text_that_is_read_begins_what_the_user_says(template: str | None, named: bool) -> None:
    tokenizer = character_tokenizer(template)
    chat = Chat(wrapped(), tokenizer, "anna" if named else None, system="Be brief.")
    told: list[tuple[int, int]] = []
    chat.read("A long text. " * 10, lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] == chat.tokens
    chat.say("So?", **forced(tokenizer, "ok"))
    chat.read("Another.")
    chat.say("And?", **forced(tokenizer, "no"))
    text = ("A long text. " * 10).strip()
    expected = (
        f"[system]\nBe brief.<end>\n[user]\n{text}\n\nSo?<end>\n[assistant]\nok<end>\n"
        "[user]\nAnother.\n\nAnd?<end>\n[assistant]\nno<end>\n[user]\n"
        if template
        else f"Be brief.\n\n{text}\n\nUser: So?\nAssistant:ok\nUser: Another.\n\nAnd?\nAssistant:no\nUser:"
    )
    assert str(tokenizer.decode(chat.token_ids()[0])) == expected
    assert chat.messages[1]["content"] == f"{text}\n\nSo?"


def test_a_chat_goes_on_in_a_session_that_has_read_a_text() -> None:
    tokenizer, model = character_tokenizer(), wrapped()
    session = Session(model, "book", tokenizer)
    session.ingest("A long text. " * 10)
    asked = session.ask("So?", max_new_tokens=8).token_ids
    chat = Chat(model, tokenizer, session)
    assert chat.session is session
    assert torch.equal(chat.say("So?", max_new_tokens=8).token_ids, asked)
    session.ingest("Another text.")
    assert session.ask("And?", max_new_tokens=2).token_ids.shape == (2,)
    assert [each["role"] for each in chat.messages] == ["user", "assistant"]


def test_reading_in_a_session_is_gone_on_with_after_an_interruption() -> None:
    model, tokenizer = wrapped(), character_tokenizer()
    text = "".join(f"Line {number}. " for number in range(60))
    whole, parts = (Chat(model, tokenizer, name, system="Hm.") for name in ("whole", "parts"))

    def stop(done: int, _: int) -> None:
        if done > 400:
            raise KeyboardInterrupt

    whole.read(text)
    with pytest.raises(KeyboardInterrupt):
        parts.read(text, stop, checkpoint_tokens=64)
    assert 0 < parts.tokens < whole.tokens
    with pytest.raises(SessionError, match="of a text; read that one again"):
        parts.say("Hi")
    parts.read(text)
    assert torch.equal(parts.token_ids(), whole.token_ids())
    assert parts.messages == whole.messages
    assert parts.say("So?", **OFTEN_ENDS).text == whole.say("So?", **OFTEN_ENDS).text


def test_nonsense_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    tokenizer = character_tokenizer()
    with pytest.raises(NotWrappedError, match="wrap"):
        Chat(tiny_model("llama"), tokenizer)
    model = wrapped()
    chat = Chat(model, tokenizer, "anna")
    for change, says in (
        (lambda: chat.say(" "), "was said is empty"),
        (lambda: chat.read(" "), "text is empty"),
        (lambda: chat.say("Hi", num_beams=2), "num_beams=2"),
        (lambda: chat.say("Hi", do_sample=True, num_return_sequences=2), "num_return_sequences=2"),
    ):
        with pytest.raises(UnsupportedInputError, match=says):
            change()
    assert (chat.tokens, chat.messages) == (0, [])
    chat.say("Hi", max_new_tokens=2)
    with pytest.raises(UnsupportedInputError, match="leave `system` out"):
        Chat(model, tokenizer, "anna", system="Be brief.")
    with pytest.raises(SessionError, match="another model"):
        Chat(wrapped(), tokenizer, chat.session)
    late = Chat(model, tokenizer, "anna")
    chat.say("Hi", max_new_tokens=2)
    with pytest.raises(SessionError, match="another handle"):
        late.say("Hi")


def test_a_session_opened_for_reading_only_cannot_be_talked_to(tmp_path: Path) -> None:
    model = wrapped(**on_disk(tmp_path / "memory"))
    Chat(model, character_tokenizer(), "anna").say("Hi", max_new_tokens=2)
    memcore.unwrap(model)
    model = wrapped(**on_disk(tmp_path / "memory", read_only=True))
    chat = Chat(model, character_tokenizer(), "anna")
    with pytest.raises(ReadOnlyError):
        chat.say("Hi")
    memcore.unwrap(model)


CHILD = """
import json, sys, torch
sys.path[:0] = {path!r}
from test_chat import *
torch.set_num_threads(1)
folder, *says = sys.argv[1:]
model = wrapped(**on_disk(Path(folder)))
chat = Chat(model, character_tokenizer(), "anna", system="Be brief.")
replies = [chat.say(each, **OFTEN_ENDS).text for each in says]
print(json.dumps([replies, chat.messages, chat.token_ids()[0].tolist()]))
memcore.unwrap(model)
"""


def test_another_process_goes_on_with_a_chat_as_if_it_had_never_ended(tmp_path: Path) -> None:
    options, tokenizer = on_disk(tmp_path / "memory"), character_tokenizer()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        chat = Chat(wrapped(), tokenizer, system="Be brief.")
        replies = [chat.say(each, **OFTEN_ENDS).text for each in SAYINGS]
        model = wrapped(**options)
        begun = Chat(model, tokenizer, "anna", system="Be brief.")
        assert [begun.say(each, **OFTEN_ENDS).text for each in SAYINGS[:2]] == replies[:2]
        memcore.unwrap(model)
    finally:
        torch.set_num_threads(threads)
    source = CHILD.format(path=[str(Path(__file__).parent), *filter(None, sys.path)])
    command = [sys.executable, "-c", source, options["backend_options"]["path"], *SAYINGS[2:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [replies[2:], chat.messages, chat.token_ids()[0].tolist()]
