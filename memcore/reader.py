"""Reading a text once and answering many questions about it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from torch import Tensor

from memcore.cache_argument import cache_argument
from memcore.errors import UnsupportedInputError
from memcore.transfer import input_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from memcore.cache import MemoryCache
    from memcore.memory import Passage

Progress = Callable[[int, int], None]
"""Called with (tokens read, tokens in all)."""

BEAMS: Final = "num_beams"
SEQUENCES: Final = "num_return_sequences"


@attrs.frozen(kw_only=True)
class Answer:
    """What a model answered.

    Attributes:
        text: the generated text, without special tokens.
        token_ids: ``[T]`` int64, what was generated.
        seconds: from the question to the last token.
        passages: the chunks attended to at the latest retrieval, empty without a memory.
    """

    text: str
    token_ids: Tensor = attrs.field(eq=False)
    seconds: float
    passages: tuple[Passage, ...] = ()


@torch.no_grad()
def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    read: Tensor,
    question: Tensor,
    cache: Any,
    max_new_tokens: int,
    **generation: Any,
) -> Answer:
    """Generate from a cache that holds a text, and a question after it.

    Args:
        model: the model, wrapped or not.
        tokenizer: its tokenizer; without one the answer has no text.
        read: ``[1, T]`` token ids that the cache holds.
        question: ``[1, T]`` token ids, at least one.
        cache: ``past_key_values``, which is used up.
        max_new_tokens: longest answer.
        **generation: more arguments of ``generate()``.

    Raises:
        UnsupportedInputError: there is no question, or more than one sequence is to be returned.
    """
    if not question.numel():
        raise UnsupportedInputError("there is nothing to ask: the question has no tokens")
    begun = time.perf_counter()
    if (wanted := setting(model, generation, SEQUENCES)) > 1:
        raise UnsupportedInputError(f"an answer is one sequence, got {SEQUENCES}={wanted}; ask again for another")
    if (beams := setting(model, generation, BEAMS)) > 1:
        cache.batch_repeat_interleave(beams)
    prompt = torch.cat([each.to(input_device(model)) for each in (read, question)], dim=1)
    if tokenizer is not None:
        generation.setdefault("pad_token_id", tokenizer.pad_token_id)
    if "generation_config" not in generation:
        generation.setdefault("do_sample", False)
    generated: Any = model.generate(  # type: ignore[operator]
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=max_new_tokens,
        **{cache_argument(model.generate): cache},  # type: ignore[arg-type]
        **generation,
    )
    new = getattr(generated, "sequences", generated)[0, prompt.shape[1] :]
    memory = getattr(model, "memory", None)
    if memory is not None and memory.tracing is not None and len(new):
        memory.tracing.wrote([int(new[-1])])
    return Answer(
        text="" if tokenizer is None else str(tokenizer.decode(new, skip_special_tokens=True)),
        token_ids=new.cpu(),
        seconds=time.perf_counter() - begun,
        passages=tuple(memory.passages(cache)) if memory is not None else (),
    )


def setting(model: PreTrainedModel, generation: Mapping[str, Any], name: str) -> int:
    """Return what ``generate()`` would take a number for with these arguments: theirs, the model's, or 1."""
    settings: Any = generation.get("generation_config") or model.generation_config
    return int(generation.get(name) or getattr(settings, name) or 1)


@torch.no_grad()
def feed(model: Any, cache: MemoryCache, ids: Tensor, progress: Progress | None = None) -> None:
    """Have a wrapped model read on, where nothing is asked.

    Args:
        model: the model.
        cache: what it reads into.
        ids: ``[1, T]`` token ids, on any device; with none nothing happens.
        progress: told how far it is.
    """
    if not ids.numel():
        return
    with cache.memory.reading(progress, question=False):
        named = {cache_argument(model.forward): cache}
        model(input_ids=ids.to(input_device(model)), use_cache=True, logits_to_keep=1, **named)
    if progress is not None:
        progress(ids.shape[1], ids.shape[1])


class Reader:
    """A model that has read a text. Every question continues from a copy of what reading left in its cache.

    Attributes:
        tokens: how many it has read.
        seconds: how long reading took.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, piece: int = 1024) -> None:
        """Take a model, wrapped or not.

        Args:
            model: the model.
            tokenizer: its tokenizer.
            piece: tokens that a model without memory reads at a time. A wrapped one divides the text by itself.
        """
        self._model = model
        self._tokenizer = tokenizer
        self._piece = piece
        self._read = torch.empty(1, 0, dtype=torch.long)
        self._cache: Any = None
        self.tokens = 0
        self.seconds = 0.0

    @torch.no_grad()
    def read(self, ids: Tensor, progress: Progress | None = None) -> None:
        """Read a text from its beginning; what was read before is forgotten.

        Args:
            ids: ``[1, T]`` token ids, at least one.
            progress: told how far it is.

        Raises:
            UnsupportedInputError: there is nothing to read.
        """
        if not ids.numel():
            raise UnsupportedInputError("there is nothing to read: the text has no tokens")
        ids = ids.to(input_device(self._model))
        memory = getattr(self._model, "memory", None)
        total = ids.shape[1]
        begun = time.perf_counter()
        cache: Any
        if memory is not None:
            cache = memory.new_cache()
            feed(self._model, cache, ids, progress)
        else:
            from transformers import DynamicCache

            # In pieces, a sliding layer computes its window and not the whole square; it is also the faster way.
            cache, name = DynamicCache(config=self._model.config), cache_argument(self._model.forward)
            for begin in range(0, total, self._piece):
                end = min(begin + self._piece, total)
                self._model(input_ids=ids[:, begin:end], use_cache=True, logits_to_keep=1, **{name: cache})
                if progress is not None:
                    progress(end, total)
        if ids.is_cuda:
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - begun
        self.tokens = total
        self._read, self._cache = ids, cache

    def ask(self, question: Tensor, *, max_new_tokens: int, **generation: Any) -> Answer:
        """Go on from the text with a question.

        Args:
            question: ``[1, T]`` token ids, at least one.
            max_new_tokens: longest answer.
            **generation: more arguments of ``generate()``.
        """
        return answer(
            self._model,
            self._tokenizer,
            read=self._read,
            question=question,
            cache=self.cache(),
            max_new_tokens=max_new_tokens,
            **generation,
        )

    def cache(self) -> Any:
        """Return ``past_key_values`` to go on with from what was read, which stays as it is.

        Raises:
            UnsupportedInputError: nothing was read yet.
        """
        if self._cache is None:
            raise UnsupportedInputError("nothing was read yet: read(...) a text first")
        return copy.deepcopy(self._cache)
