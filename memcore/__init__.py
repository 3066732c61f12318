"""memcore: long-term memory for Hugging Face decoder models.

Wrap a model, feed it a text far longer than its window, and ask::

    import memcore
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("google/gemma-3-270m")
    model = memcore.wrap(model, memcore.MemoryConfig(window=1024))
    model.generate(...)

Names are imported when they are first used, so ``import memcore`` itself costs neither torch nor transformers.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

from memcore.errors import (
    AlreadyWrappedError,
    BackendError,
    ChunkShapeError,
    ClosedError,
    ConfigError,
    CorruptedError,
    EvaluationError,
    MemcoreError,
    MemcoreWarning,
    MissingDependencyError,
    NotWrappedError,
    PluginError,
    ReadOnlyError,
    SessionError,
    SessionMismatchError,
    TrainingError,
    UnknownChunkError,
    UnknownNameError,
    UnknownNamespaceError,
    UnknownSessionError,
    UnsupportedCacheError,
    UnsupportedInputError,
    UnsupportedModelError,
    WriteError,
)

if TYPE_CHECKING:
    from memcore.adapter import AutoAdapter, ModelAdapter, unwrap, wrap
    from memcore.attention_shape import AttentionShape
    from memcore.backend import Damage, MemoryBackend, PersistentBackend
    from memcore.bank import MemoryBank
    from memcore.bank_hooks import Holdings
    from memcore.cache import MemoryCache
    from memcore.chat import Chat
    from memcore.chunk import ChunkBatch, SearchResult
    from memcore.config import MemoryConfig
    from memcore.embedder import ChunkEmbedder
    from memcore.eviction import ChunkUsage, EvictionPolicy
    from memcore.footprint import Footprint
    from memcore.hookspecs import Component, hookimpl
    from memcore.pretrained import from_pretrained
    from memcore.session import Session
    from memcore.session_store import SessionInfo
    from memcore.training.saved import load_trained

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent, unless somebody wants to hear

_HOMES = {  # where the names that cost an import of torch or of the configuration machinery live
    "memcore.adapter": ("AutoAdapter", "ModelAdapter", "unwrap", "wrap"),
    "memcore.attention_shape": ("AttentionShape",),
    "memcore.backend": ("Damage", "MemoryBackend", "PersistentBackend"),
    "memcore.bank": ("MemoryBank",),
    "memcore.bank_hooks": ("Holdings",),
    "memcore.cache": ("MemoryCache",),
    "memcore.chat": ("Chat",),
    "memcore.chunk": ("ChunkBatch", "SearchResult"),
    "memcore.config": ("MemoryConfig",),
    "memcore.embedder": ("ChunkEmbedder",),
    "memcore.eviction": ("ChunkUsage", "EvictionPolicy"),
    "memcore.footprint": ("Footprint",),
    "memcore.hookspecs": ("Component", "hookimpl"),
    "memcore.pretrained": ("from_pretrained",),
    "memcore.session": ("Session",),
    "memcore.session_store": ("SessionInfo",),
    "memcore.training.saved": ("load_trained",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AlreadyWrappedError",
    "AttentionShape",
    "AutoAdapter",
    "BackendError",
    "Chat",
    "ChunkBatch",
    "ChunkEmbedder",
    "ChunkShapeError",
    "ChunkUsage",
    "ClosedError",
    "Component",
    "ConfigError",
    "CorruptedError",
    "Damage",
    "EvaluationError",
    "EvictionPolicy",
    "Footprint",
    "Holdings",
    "MemcoreError",
    "MemcoreWarning",
    "MemoryBackend",
    "MemoryBank",
    "MemoryCache",
    "MemoryConfig",
    "MissingDependencyError",
    "ModelAdapter",
    "NotWrappedError",
    "PersistentBackend",
    "PluginError",
    "ReadOnlyError",
    "SearchResult",
    "Session",
    "SessionError",
    "SessionInfo",
    "SessionMismatchError",
    "TrainingError",
    "UnknownChunkError",
    "UnknownNameError",
    "UnknownNamespaceError",
    "UnknownSessionError",
    "UnsupportedCacheError",
    "UnsupportedInputError",
    "UnsupportedModelError",
    "WriteError",
    "__version__",
    "from_pretrained",
    "hookimpl",
    "load_trained",
    "unwrap",
    "wrap",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
