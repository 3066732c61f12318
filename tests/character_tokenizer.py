"""A tokenizer of single characters for the tiny models, with a chat template: every text has one encoding."""

from __future__ import annotations

from typing import Any, Final

from tiny_models import VOCABULARY
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END: Final = 1
"""The token that ends a turn."""

TEMPLATE = (
    "{% for each in messages %}[{{ each.role }}]\n{{ each.content | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)


def character_tokenizer(template: str | None = TEMPLATE) -> Any:
    """Make one, or one without a chat template if that is None."""
    characters = ["<pad>", "<end>", "\n", *(chr(code) for code in range(32, 126))]
    assert len(characters) == VOCABULARY
    core = Tokenizer(models.WordLevel({each: index for index, each in enumerate(characters)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")
    made.chat_template = template
    return made
