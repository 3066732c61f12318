"""A tokenizer for the tiny models: one token a word, w0, w1, ..."""

from __future__ import annotations

from tiny_models import VOCABULARY
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }} {% endfor %}{% if add_generation_prompt %}w1{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows as many words as the tiny models do, with a chat template."""
    # transformers looks for stop strings with a word of its own before them.
    words = ["<pad>", "<s>", "abcdef", *(f"w{n}" for n in range(VOCABULARY - 3))]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", padding_side="left")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
