"""What fits where, which backend to use, and what would help if it does not fit.

The rule: a memory is in RAM if it fits there, else on disk (``lmdb``). In RAM up to :data:`FEW_CHUNKS` chunks a layer
are compared one by one (``exact``), and more through an index (``faiss``, or ``hnswlib`` where that is not installed),
unless there is only room without one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import attrs

from memcore.backend import PersistentBackend
from memcore.config import MemoryConfig
from memcore.errors import ConfigError, MissingDependencyError
from memcore.planning.costs import Costs, chunks_of, costs_of
from memcore.planning.model_shape import ModelShape
from memcore.planning.sizes import show_bytes, show_tokens
from memcore.plugins import registry

FEW_CHUNKS: Final = 10_000
"""Chunks of a layer up to which all of them are compared."""

GPU_ITSELF: Final = 1 << 30
"""Bytes of a GPU taken to be gone for CUDA's libraries and what its allocator cannot use, 1 GiB."""

PROCESS: Final = 1 << 30
"""Bytes of RAM taken to be gone for Python, torch and transformers, 1 GiB."""

_IN_RAM: Final = "exact"
_WITH_INDEX: Final = ("faiss", "hnswlib")
_ON_DISK: Final = "lmdb"
_FOLDER: Final = "memory"
_FEWEST_VECTORS: Final = "mean"
_MEMORY: Final = "memory"
"""The part of a place that the chunks take."""


@attrs.frozen(kw_only=True)
class Budgets:
    """What there is, in bytes.

    Attributes:
        gpu: of the GPU that the model is on; None for a model in RAM.
        ram: of the machine.
        disk: that a memory may take.
    """

    gpu: int | None
    ram: int
    disk: int


@attrs.frozen(kw_only=True)
class Place:
    """What lies somewhere.

    Attributes:
        name: ``"GPU"``, ``"RAM"`` or ``"disk"``.
        parts: bytes, by what they are.
        budget: bytes there are.
    """

    name: str
    parts: Mapping[str, int]
    budget: int

    @property
    def needed(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether there is room for them."""
        return self.needed <= self.budget


@attrs.frozen(kw_only=True)
class Plan:
    """A configuration, what it takes, and whether there is room for it.

    Attributes:
        config: to give to ``memcore.wrap``.
        costs: what it takes.
        places: where.
        reason: why this backend.
        advice: what would help where it does not fit, or is slow.
    """

    config: MemoryConfig
    costs: Costs
    places: tuple[Place, ...]
    reason: str
    advice: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether there is room everywhere."""
        return all(place.fits for place in self.places)

    @property
    def memory_fits(self) -> bool:
        """Whether there is room wherever the memory is."""
        return all(place.fits for place in self.places if place.name != "GPU" or self.costs.bank.gpu)

    def full_attention_fits(self, budget: int) -> bool:
        """Return whether there is room for the model with full attention to the whole text.

        Args:
            budget: bytes of where the model is.
        """
        apart = GPU_ITSELF if self.places[0].name == "GPU" else PROCESS
        return self.costs.weights + self.costs.full_cache + apart <= budget


def make_plan(shape: ModelShape, *, tokens: int, budgets: Budgets, batch: int = 1, choose_backend: bool = True) -> Plan:
    """Say what a memory of a text takes, and where it fits.

    Args:
        shape: of the model and its memory.
        tokens: read, in each sequence.
        budgets: what there is.
        batch: sequences.
        choose_backend: whether the backend may be another than ``shape.config`` says, by the rule of this module.

    Raises:
        ConfigError: no memory is needed for so few tokens, the model cannot read so many, or the options of the backend
            are wrong.
        BackendError: the backend does not say what chunks take.
        MissingDependencyError: it needs a package that is not installed.
    """
    if batch < 1:
        raise ConfigError(f"batch must be at least 1, got {batch}")
    situation = _Situation(shape=shape, tokens=tokens, batch=batch, budgets=budgets)
    if not choose_backend:
        found = situation.plan(_with_folder(shape.config), "as asked for")
    else:
        for config, reason in _in_order(shape.config, tokens):
            try:
                found = situation.plan(config, reason)
            except MissingDependencyError:
                if config.backend == _ON_DISK:
                    raise
                continue
            if found.memory_fits:
                break
    return attrs.evolve(found, advice=tuple(_advice(situation, found)))


@attrs.frozen(kw_only=True)
class _Situation:
    """What a configuration is to be judged for."""

    shape: ModelShape
    tokens: int
    batch: int
    budgets: Budgets

    def plan(self, config: MemoryConfig, reason: str = "") -> Plan:
        costs = costs_of(self.shape, config, tokens=self.tokens, batch=self.batch)
        return Plan(config=config, costs=costs, places=_places(costs, self.budgets), reason=reason)


def _in_order(config: MemoryConfig, tokens: int) -> Iterator[tuple[MemoryConfig, str]]:
    """Yield the backends to try, and why one is used if it is the first that fits."""
    options = dict(config.backend_options)
    few = chunks_of(tokens, config) <= FEW_CHUNKS
    if few:
        reason = f"the memory fits RAM, and up to {FEW_CHUNKS:,} chunks a layer need no index"
        yield attrs.evolve(config, backend=_IN_RAM, backend_options=options), reason
    else:
        for name in _WITH_INDEX:
            reason = f"the memory fits RAM with an index, which more than {FEW_CHUNKS:,} chunks a layer are worth"
            yield attrs.evolve(config, backend=name, backend_options=options), reason
        reason = "the memory fits RAM, though not with an index beside it"
        yield attrs.evolve(config, backend=_IN_RAM, backend_options=options), reason
    reason = "the memory does not fit RAM"
    yield _with_folder(attrs.evolve(config, backend=_ON_DISK, backend_options=options)), reason


def _with_folder(config: MemoryConfig) -> MemoryConfig:
    """Return the configuration with a folder to keep the memory in, where the backend needs one."""
    kind = registry().load_component("backends", config.backend)
    if issubclass(kind, PersistentBackend) and "path" not in config.backend_options:
        return attrs.evolve(config, backend_options={"path": _FOLDER, **config.backend_options})
    return config


def _places(costs: Costs, budgets: Budgets) -> tuple[Place, ...]:
    local = costs.local
    model = {
        "weights": costs.weights,
        "window and sinks": local.window,
        "retrieved chunks": local.retrieved + local.joined,
        "sliding layers": local.sliding,
        "working memory, roughly": local.working,
    }
    ram = {_MEMORY: costs.bank.ram + costs.bookkeeping, "Python and torch, roughly": PROCESS}
    places = []
    if budgets.gpu is None:
        ram = model | ram
    else:
        gpu = model | {_MEMORY: costs.bank.gpu, "CUDA itself, roughly": GPU_ITSELF}
        places.append(Place(name="GPU", parts=_some(gpu), budget=budgets.gpu))
    places.append(Place(name="RAM", parts=_some(ram), budget=budgets.ram))
    if costs.bank.disk:
        disk = {_MEMORY: costs.bank.disk, "state of the sessions": local.state}
        places.append(Place(name="disk", parts=disk, budget=budgets.disk))
    return tuple(places)


def _some(parts: Mapping[str, int]) -> dict[str, int]:
    return {name: size for name, size in parts.items() if size}


def _advice(situation: _Situation, plan: Plan) -> Iterator[str]:
    """Yield what would help."""
    model = plan.places[0]
    if _without_memory(model) > model.budget:
        window = _smaller_window(situation, plan.config)
        if window:
            yield f"{model.name}: a window of {window:,} tokens fits (--window {window})"
        else:
            yield (
                f"{model.name}: the weights take {show_bytes(model.parts['weights'])} of {show_bytes(model.budget)}, "
                "and no window makes up for that; weights of fewer bits (--dtype, or --weights for what is quantised), "
                "a smaller batch or a smaller model may fit"
            )
    if plan.memory_fits:
        yield from _slow(plan)
        return
    fitting = next((name for name, fits in _smaller_memories(situation, plan.config) if fits), None)
    if fitting:
        yield f"the memory fits with {fitting}"
    most = _most_tokens(situation, plan)
    if most:
        yield f"as it is, {show_tokens(most)} tokens fit"


def _slow(plan: Plan) -> Iterator[str]:
    """Yield that searches will wait for the disk, if they will."""
    vectors = plan.costs.bank.vectors
    ram = next(place for place in plan.places if place.name == "RAM")
    if plan.costs.bank.disk and vectors > ram.budget - ram.needed:
        fewer = "" if plan.config.embedder == _FEWEST_VECTORS else f"; --set embedder={_FEWEST_VECTORS} has fewer"
        yield (
            f"every choice of chunks compares all search vectors, {show_bytes(vectors)}, which RAM cannot hold beside "
            f"the rest ({show_bytes(max(0, ram.budget - ram.needed))} are left): it will wait for the disk{fewer}"
        )


def _without_memory(place: Place) -> int:
    return place.needed - place.parts.get(_MEMORY, 0)


def _smaller_window(situation: _Situation, config: MemoryConfig) -> int | None:
    """Return a window with which everything that is with the model fits, as many halves of this one as it takes."""
    window = config.window_length // 2
    while window >= 2 * config.chunk_size:
        try:
            model = situation.plan(attrs.evolve(config, window=window)).places[0]
        except ConfigError:  # a segment that was asked for does not fit into it
            return None
        if _without_memory(model) <= model.budget:
            return window
        window //= 2
    return None


def _smaller_memories(situation: _Situation, config: MemoryConfig) -> Iterator[tuple[str, bool]]:
    """Yield ways to make the memory smaller, and whether it fits then."""
    options = dict(config.backend_options)
    compressed = attrs.evolve(config, backend_options={**options, "compression": "int8"})
    fewer = attrs.evolve(situation, shape=situation.shape.with_embedder(_FEWEST_VECTORS))
    name = f"embedder={_FEWEST_VECTORS}"
    if options.get("compression", "none") == "none":
        yield "--compression int8", situation.plan(compressed).memory_fits
    if config.embedder != _FEWEST_VECTORS:
        yield f"--set {name}", fewer.plan(config).memory_fits
        yield f"--compression int8 and --set {name}", fewer.plan(compressed).memory_fits


def _most_tokens(situation: _Situation, plan: Plan) -> int | None:
    """Return how many tokens fit, None if none do, to two digits."""
    low, high = 0, situation.tokens
    while high - low > max(1, high // 200):
        middle = (low + high) // 2
        try:
            fits = attrs.evolve(situation, tokens=middle).plan(plan.config).memory_fits
        except ConfigError:  # so few that nothing leaves the window
            return None
        low, high = (middle, high) if fits else (low, middle)
    digits = 10 ** max(0, len(str(low)) - 2)
    return low // digits * digits or None
