"""``model.memory``: the handle on a wrapped model's memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
from torch import Tensor

from memcore import events
from memcore.bank import MemoryBank
from memcore.cache import MemoryCache
from memcore.config import MemoryConfig
from memcore.errors import BackendError, ConfigError, NotWrappedError, UnsupportedInputError
from memcore.layer_setup import LayerSetup
from memcore.memory_layer import Recalled
from memcore.options import structure_options
from memcore.plugin_hooks import PluginHooks
from memcore.plugins import registry
from memcore.rotary import RotaryGeometry, same_rotation
from memcore.session_store import SessionStore
from memcore.trace import Trace

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


@attrs.frozen(eq=False, kw_only=True)
class Passage:
    """A chunk that was attended to.

    Attributes:
        start: position of its first token.
        token_ids: ``[C]`` int64.
        layers: the layers that attended to it, by index.
    """

    start: int
    token_ids: Tensor
    layers: tuple[int, ...]


class _Reading(threading.local):
    """How the calls of one thread read: threads may share a memory while one of them reads a text and others ask."""

    def __init__(self, question_tokens: int) -> None:
        self.progress: Callable[[int, int], None] | None = None
        self.question_tokens = question_tokens


class Memory:
    """What a wrapped model remembers with: configuration, bank, embedder.

    Attributes:
        config: the configuration given to ``wrap``, with what the model decides where that left it open.
        bank: where chunks go.
        text_config: the decoder's transformers configuration.
        layer_setups: one for each layer with global attention.
        sessions: the memories that have a name.
        tracing: the trace under way, see :meth:`trace`.
    """

    def __init__(
        self,
        config: MemoryConfig,
        text_config: PreTrainedConfig,
        geometries: dict[int, RotaryGeometry | None],
        tokenizer: PreTrainedTokenizerBase | str | None = None,
    ) -> None:
        """Open the backend and prepare every layer.

        Args:
            config: what the memory is made of.
            text_config: the decoder's transformers configuration.
            geometries: how each layer with global attention rotates keys; None where positions do not enter.
            tokenizer: the model's, or its name; for embedders that read text.

        Raises:
            ConfigError: a name, an option or a layer index is wrong.
            MissingDependencyError: a chosen component needs a package that is not installed.
            PluginError: a chosen component is none.
            BackendError: the backend cannot be opened, because another process writes there, for example.
        """
        readers = _readers(config, geometries)
        plugins = registry()
        backend = plugins.load_component("backends", config.backend)
        embedder = plugins.load_component("embedders", config.embedder)
        policy = plugins.load_component("eviction_policies", config.eviction)
        options: object = structure_options(
            backend.Options, config.backend_options, f"backend_options of {config.backend!r}"
        )
        embedder_options: object = structure_options(
            embedder.Options, config.embedder_options, f"embedder_options of {config.embedder!r}"
        )
        eviction_options: object = structure_options(
            policy.Options, config.eviction_options, f"eviction_options of {config.eviction!r}"
        )
        self.config = config = config.fitted(None)
        self.text_config = text_config
        made, forgets = embedder(embedder_options), policy(eviction_options)
        made.bind_tokenizer(tokenizer)
        opened = backend(options)
        try:
            self.bank = MemoryBank(
                opened,
                forgets,
                capacity=None if config.capacity is None else config.capacity // config.chunk_size,
                hooks=PluginHooks(backend=config.backend),
            )
            self.sessions = SessionStore(self.bank)
        except BaseException:
            opened.close()  # or it would keep others out
            raise
        events.MEMORY_OPENED.log(
            backend=config.backend,
            window=config.window_length,
            layers=readers,
            capacity=config.capacity,
            embedder=config.embedder,
            eviction=config.eviction,
            read_only=self.bank.read_only,
        )
        self.layer_setups = [
            LayerSetup(
                index=index,
                remembers=index in readers if config.memory_layer is None else index == config.memory_layer,
                reads=index in readers,
                geometry=geometry,
                config=config,
                embedder=made,
                bank=self.bank,
            )
            for index, geometry in sorted(geometries.items())
        ]
        self._geometries = geometries
        self._tokenizer = tokenizer
        self._question_tokens = config.question_tokens if readers else 0  # without memory nothing is asked for
        self._reading = _Reading(self._question_tokens)
        self.tracing: Trace | None = None
        self._latest: dict[int, list[Recalled | None]] = {}

    def rotate_by(self, geometries: dict[int, RotaryGeometry | None]) -> None:
        """Have caches that are still empty rotate keys in another way.

        Args:
            geometries: as given at the beginning, for the same layers.
        """
        self._geometries = geometries
        self.layer_setups = [attrs.evolve(setup, geometry=geometries[setup.index]) for setup in self.layer_setups]

    def new_cache(self) -> MemoryCache:
        """Return an empty cache to pass as ``past_key_values``."""
        return MemoryCache(self)

    @property
    def progress(self) -> Callable[[int, int], None] | None:
        """What is told how far an input is that this thread reads; see :meth:`reading`."""
        return self._reading.progress

    @property
    def question_tokens(self) -> int:
        """Tokens at the end of a long input that pass one at a time, in this thread."""
        return self._reading.question_tokens

    @contextmanager
    def reading(self, progress: Callable[[int, int], None] | None = None, *, question: bool = True) -> Iterator[None]:
        """Tell how far a long input is, and whether it ends in a question, while in this context and this thread.

        Args:
            progress: called with (tokens done, tokens in all) after each piece of an input that passes in several.
            question: False for a text that nothing is asked in yet: its last tokens need no retrievals of their own.
        """
        now = self._reading
        before = now.progress, now.question_tokens
        now.progress, now.question_tokens = progress, self._question_tokens if question else 0
        try:
            yield
        finally:
            now.progress, now.question_tokens = before

    @contextmanager
    def trace(self) -> Iterator[Trace]:
        """Watch what is read for each generated token, while in this context.

        Every layer that reads computes the weights of the token under way once more, by the family's eager attention.
        Beam search and assisted generation are refused meanwhile: their rows and tokens come and go.

        Example:
            >>> with model.memory.trace() as trace:  # doctest: +SKIP
            ...     model.generate(**prompt, max_new_tokens=20)
            >>> print(trace.explain(tokenizer))  # doctest: +SKIP

        Raises:
            UnsupportedInputError: one trace is under way already.
        """
        if self.tracing is not None:
            raise UnsupportedInputError("a trace of this memory is under way already; leave its context first")
        self.tracing = Trace()
        try:
            yield self.tracing
        finally:
            self.tracing = None

    def used(self, cache: MemoryCache) -> None:
        """Note which cache was used last; :meth:`passages` looks there by default."""
        self._latest = cache.recalled

    def passages(self, cache: MemoryCache | None = None, row: int = 0) -> list[Passage]:
        """Return the chunks that were attended to at the latest retrieval, those read by most layers first.

        Args:
            cache: whose; None for the one used last.
            row: of which sequence of the batch.
        """
        found: dict[int, tuple[Tensor, list[int]]] = {}
        for index, rows in sorted((self._latest if cache is None else cache.recalled).items()):
            recalled = rows[row]
            if recalled is None:
                continue
            for start, token_ids in zip(recalled.starts.tolist(), recalled.token_ids, strict=True):
                found.setdefault(start, (token_ids, []))[1].append(index)
        passages = [
            Passage(start=start, token_ids=token_ids.cpu(), layers=tuple(layers))
            for start, (token_ids, layers) in found.items()
        ]
        return sorted(passages, key=lambda passage: (-len(passage.layers), passage.start))

    def close(self) -> None:
        """Close the bank and its backend."""
        if not self.bank.closed:
            self.bank.close()
            events.MEMORY_CLOSED.log(backend=self.config.backend)

    def __deepcopy__(self, memo: dict[int, Any]) -> Memory:
        """A copied model gets an empty memory of its own.

        Raises:
            BackendError: this one is on disk, where there is room for one writer.
        """
        if self.bank.persistent and not self.bank.read_only:
            raise BackendError(
                f"a model whose memory is on disk cannot be copied: two would write to {self.config.backend_options}; "
                "memcore.unwrap() it first, and wrap the copy with a path of its own"
            )
        twin = Memory(self.config, self.text_config, self._geometries, self._tokenizer)
        memo[id(self)] = twin
        return twin

    def __repr__(self) -> str:
        layers: Sequence[int] = [setup.index for setup in self.layer_setups if setup.reads]
        return f"Memory(backend={self.config.backend!r}, window={self.config.window_length}, layers={list(layers)})"


def memory_of(model: object) -> Memory:
    """Return the memory of a wrapped model.

    Raises:
        NotWrappedError: it has none.
    """
    memory = getattr(model, "memory", None)
    if not isinstance(memory, Memory):
        raise NotWrappedError(f"{type(model).__name__} has no memory; memcore.wrap(model, ...) gives it one")
    return memory


def _readers(config: MemoryConfig, geometries: dict[int, RotaryGeometry | None]) -> list[int]:
    """Return the layers that attend to retrieved chunks.

    Raises:
        ConfigError: a layer that the configuration names cannot have a memory, or not that of the memory layer.
    """
    memory_layer = () if config.memory_layer is None else (config.memory_layer,)
    for field, layers in (("layers", config.layers or ()), ("memory_layer", memory_layer)):
        unknown = sorted(set(layers) - set(geometries))
        if unknown:
            raise ConfigError(
                f"{field}: {unknown} cannot have a memory in this model; those that can: {sorted(geometries)}"
            )
    able = (index for index in geometries if index >= (config.memory_layer or 0))
    readers = sorted(able if config.layers is None else config.layers)
    if config.memory_layer is not None:
        source = geometries[config.memory_layer]
        differ = [index for index in readers if not same_rotation(geometries[index], source)]
        if differ:
            raise ConfigError(
                f"layers: {differ} rotate keys in another way than memory_layer ({config.memory_layer}), so they "
                "cannot read its keys"
            )
    return readers
