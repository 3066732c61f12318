"""The turns of a conversation as they are fed: what stands between them, and which tokens end one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memcore.prompt import encode
from memcore.transcript import USER, Message, next_turn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def lead(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, begun: bool) -> str:
    """Return what is to be fed before the user's next words.

    The end of a reply is fed together with what stands before the next words, so that is nothing most of the time.

    Args:
        tokenizer: the model's.
        messages: what was said so far.
        begun: whether anything was fed yet.
    """
    before = "" if begun else next_turn(tokenizer, messages).before
    if tokenizer.chat_template:
        return before
    if begun and not replied(messages):  # after a text, which is no turn
        return f"{USER} "
    under_way = begun and messages[-1]["role"] == "user"
    return "" if under_way else f"{before} "


def replied(messages: Sequence[Message]) -> bool:
    """Say whether there was a reply yet."""
    return any(each["role"] == "assistant" for each in messages)


def with_saying(messages: Sequence[Message], text: str) -> list[Message]:
    """Return the messages with something more that the user says."""
    if messages and messages[-1]["role"] == "user":
        return [*messages[:-1], {"role": "user", "content": f"{messages[-1]['content']}\n\n{text}"}]
    return [*messages, {"role": "user", "content": text}]


def laid_out(
    tokenizer: PreTrainedTokenizerBase, before: Sequence[Message], turns: Sequence[Message], *, begun: bool
) -> tuple[str, list[Message]]:
    """Return what is fed for turns that were had elsewhere, as if they had been had here one by one.

    Args:
        tokenizer: the model's.
        before: what was said here before them, a system message first if there is one.
        turns: messages of the user and the assistant by turns; the user's first and last, so that a reply follows.
        begun: whether anything was fed yet.

    Returns:
        The text, and all that was said then.
    """
    text, said = "", list(before)
    for each in turns:
        words = each["content"].strip()
        if each["role"] == "user":
            text += lead(tokenizer, said, begun=begun) + words + next_turn(tokenizer, said).after
            said = with_saying(said, words)
        else:
            said.append({"role": "assistant", "content": words})
            text += ("" if tokenizer.chat_template else " ") + words + next_turn(tokenizer, said).before
        begun = True
    return text, said


def stops_of(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the texts that end a reply: where a model that writes a plain transcript begins to speak for the user."""
    return () if tokenizer.chat_template else (f"\n{USER}",)


def ends_of_turn(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> set[int]:
    """Return the tokens that end the next reply: the model's, the tokenizer's, and what the template ends one with.

    Args:
        model: whose generation settings count.
        tokenizer: its tokenizer.
        messages: what was said, the user's words last.
    """
    config: Any = model.generation_config
    given = config.eos_token_id
    ends = {tokenizer.eos_token_id, *(given if isinstance(given, list | tuple) else [given])} - {None}
    after = next_turn(tokenizer, [*messages, {"role": "assistant", "content": ""}]).before
    first = encode(tokenizer, after, special=False)[0, :1].tolist() if after else []
    return {int(end) for end in ends} | ({*first} & {*tokenizer.all_special_ids})
