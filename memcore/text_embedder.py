"""Chunks found by their text, as in MemLong: a sentence embedder reads what the model's tokenizer makes of them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

import attrs
import torch
from torch import Tensor

from memcore.chunk import UNKNOWN_TOKEN
from memcore.embedder import ChunkEmbedder, ChunkKeys, RecentQueries
from memcore.errors import ConfigError, MissingDependencyError, UnsupportedInputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REMEMBERED: Final = 1024
"""Texts whose vectors are kept: where every layer has its own memory, all of them ask for the same."""

_LACKING: Final = "the embedder 'sentence-transformers' reads text, so it needs the model's tokenizer: "


@attrs.frozen(kw_only=True)
class TextEmbedderOptions:
    """Options of ``sentence-transformers``.

    Attributes:
        model: hub id or folder of a model of sentence-transformers. The text that looks for chunks is as long as
            ``query_tokens``, so that should be about ``chunk_size``, and neither longer than the model reads.
        device: where it runs, as torch names it; None for what sentence-transformers chooses.
        batch_size: texts it reads at a time.
    """

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    device: str | None = None
    batch_size: int = attrs.field(default=32, validator=attrs.validators.ge(1))


class TextEmbedder(ChunkEmbedder):
    """One unit vector a chunk, and one for the text of the latest tokens; their inner product is the cosine."""

    Options = TextEmbedderOptions

    def __init__(self, options: object) -> None:
        """Load the model.

        Raises:
            MissingDependencyError: sentence-transformers is not installed.
            ConfigError: the model cannot be loaded.
        """
        self.options = cast(TextEmbedderOptions, options)
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise MissingDependencyError(
                'the embedder needs sentence-transformers: pip install "memcore-llm[text]"'
            ) from error
        try:
            self._model: Any = SentenceTransformer(self.options.model, device=self.options.device)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(f"embedder_options: model {self.options.model!r} cannot be loaded: {error}") from error
        self._tokenizer: Any = None
        self._vectors: OrderedDict[tuple[str, str], Tensor] = OrderedDict()
        self._lock = threading.Lock()  # threads may share a wrapped model

    def bind_tokenizer(self, tokenizer: PreTrainedTokenizerBase | str | None) -> None:
        """Take the model's tokenizer, or load it by the name of the model."""
        if isinstance(tokenizer, str):
            from transformers import AutoTokenizer

            try:
                tokenizer = AutoTokenizer.from_pretrained(tokenizer)
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"{_LACKING}there is none at {tokenizer!r}; memcore.wrap(model, ..., tokenizer=tokenizer)"
                ) from error
        if tokenizer is None:
            raise ConfigError(f"{_LACKING}memcore.wrap(model, ..., tokenizer=tokenizer)")
        self._tokenizer = tokenizer

    def embed_chunks(self, chunks: ChunkKeys) -> Tensor:
        """Return ``[N, 1, E]``, on the CPU."""
        return self._embed("chunk", self._model.encode_document, chunks.token_ids)[:, None]

    def embed_queries(self, recent: RecentQueries) -> Tensor:
        """Return ``[1, E]``, on the CPU."""
        return self._embed("query", self._model.encode_query, recent.token_ids[None])

    def _embed(self, kind: str, encode: Callable[..., Tensor], token_ids: Tensor) -> Tensor:
        """Return the vectors of ``[N, C]`` token ids, ``[N, E]`` float32 of length 1."""
        if bool((token_ids == UNKNOWN_TOKEN).any()):
            raise UnsupportedInputError(
                "the embedder 'sentence-transformers' needs token ids, and some of what the model read came as "
                "inputs_embeds; pass input_ids, or choose another embedder"
            )
        texts = self._tokenizer.batch_decode(token_ids, skip_special_tokens=True)
        with self._lock:
            return self._of_texts(kind, encode, texts)

    def _of_texts(self, kind: str, encode: Callable[..., Tensor], texts: list[str]) -> Tensor:
        keys = [(kind, text) for text in texts]
        unknown = list(dict.fromkeys(text for key, text in zip(keys, texts, strict=True) if key not in self._vectors))
        known = {key: self._vectors[key] for key in keys if key in self._vectors}
        if unknown:
            made = encode(
                unknown,
                batch_size=self.options.batch_size,
                normalize_embeddings=True,
                convert_to_tensor=True,
                show_progress_bar=False,
            )
            known.update(((kind, text), vector) for text, vector in zip(unknown, made.float().cpu(), strict=True))
        for key in known:
            self._vectors[key] = known[key]
            self._vectors.move_to_end(key)
        while len(self._vectors) > _REMEMBERED:
            self._vectors.popitem(last=False)
        return torch.stack([known[key] for key in keys])
