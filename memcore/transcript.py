"""How a conversation is written down for the model: by its chat template, or as a plain transcript."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import attrs

from memcore.errors import UnsupportedInputError, UnsupportedModelError
from memcore.files import parse_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
"""Who said what: ``role``, which is ``"system"``, ``"user"`` or ``"assistant"``, and ``content``."""

USER: Final = "User:"
ASSISTANT: Final = "Assistant:"

# Text that nobody says and no template changes.
_REPLY: Final = "\u2e28reply\u2e29"
_SAYING: Final = "\u2e28saying\u2e29"


@attrs.frozen(kw_only=True)
class Turn:
    """What stands around what the user says next.

    Attributes:
        before: between the end of the last reply, or the beginning, and what the user says.
        after: between that and the reply.
    """

    before: str
    after: str


def parse_messages(text: bytes) -> list[Message]:
    """Return messages from JSON.

    Raises:
        ValueError: it holds something else.
    """
    messages = parse_json(text)
    if not isinstance(messages, list) or not all(
        isinstance(each, dict)
        and {"role", "content"} <= each.keys()
        and all(isinstance(part, str) for pair in each.items() for part in pair)
        for each in messages
    ):
        raise ValueError("messages must be a list of objects with role and content")
    return messages


def next_turn(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]) -> Turn:
    """Return what stands around what the user says after these messages.

    A chat template may write earlier turns anew once there is a later one: leave out what was thought, say. What a
    memory has read cannot be taken back, so only what the template writes after the last reply counts.

    Args:
        tokenizer: without a chat template the transcript is a plain one, ``User: ...`` and ``Assistant: ...``.
        messages: all that was said, a system message first if there is one. A message of the user at the end is one
            that is under way.

    Raises:
        UnsupportedInputError: the template does not take these messages.
        UnsupportedModelError: the template leaves out the last reply or what the user says next, so that there is no
            telling what stands between.
    """
    said = [dict(each) for each in messages]
    if said and said[-1]["role"] == "user":
        said.pop()
    replied = bool(said) and said[-1]["role"] == "assistant"
    if not tokenizer.chat_template:
        if replied:
            return Turn(before=f"\n{USER}", after=f"\n{ASSISTANT}")
        system = "".join(f"{each['content'].strip()}\n\n" for each in said)
        return Turn(before=f"{system}{USER}", after=f"\n{ASSISTANT}")
    if replied:
        said[-1] = {"role": "assistant", "content": _REPLY}
    whole = _rendered(tokenizer, [*said, {"role": "user", "content": _SAYING}])
    before, found, after = whole.rpartition(_SAYING)
    if not found:
        raise UnsupportedModelError("the chat template of the tokenizer leaves out what the user says")
    if replied:
        _, found, before = before.rpartition(_REPLY)
        if not found:
            raise UnsupportedModelError(
                "the chat template of the tokenizer leaves out the reply before the last, or puts it after what the "
                "user says: a conversation cannot go on with it turn by turn. Take a tokenizer with another "
                "chat_template, or set it to None for a plain transcript"
            )
    return Turn(before=before, after=after)


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> str:
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except (TemplateError, ValueError, TypeError) as error:
        roles = ", ".join(each["role"] for each in messages)
        raise UnsupportedInputError(f"the chat template does not take messages of {roles}: {error}") from error
