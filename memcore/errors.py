"""Every exception memcore raises on purpose.

All of them derive from :class:`MemcoreError`, so ``except MemcoreError`` catches memcore's complaints and nothing else.
A message names what was wrong, what was given and what would be right.
"""

from __future__ import annotations


class MemcoreError(Exception):
    """Base class of every memcore exception."""


class MemcoreWarning(UserWarning):
    """Something works in another way than a user may expect; the one category of memcore's warnings."""


class ConfigError(MemcoreError, ValueError):
    """A configuration field, option or file has a value memcore cannot use."""


class UnknownNameError(ConfigError):
    """A backend, embedder, eviction policy or other component was asked for by a name nobody registered."""


class PluginError(MemcoreError):
    """A plugin could not be loaded, registered something it must not, or chose what cannot be done."""


class MissingDependencyError(MemcoreError, ImportError):
    """A component needs a package that is not installed."""


class UnsupportedModelError(MemcoreError, TypeError):
    """A model cannot be loaded, or cannot do what is asked of it: most often no adapter can give it a memory."""


class AlreadyWrappedError(MemcoreError, RuntimeError):
    """The model already has a memory."""


class NotWrappedError(MemcoreError, RuntimeError):
    """The model has no memory, and what was asked needs one."""


class UnsupportedInputError(MemcoreError, ValueError):
    """What was given cannot be read: a text, a file, or arguments of a call that a memory cannot serve."""


class UnsupportedCacheError(UnsupportedInputError):
    """The ``past_key_values`` passed in is not one that memory can live in."""


class BackendError(MemcoreError, RuntimeError):
    """A memory backend refused an operation; what was stored before is unchanged."""


class UnknownNamespaceError(BackendError):
    """A namespace does not exist in the backend."""


class UnknownChunkError(BackendError):
    """A chunk id is not (or no longer) stored in the namespace."""


class ChunkShapeError(BackendError, ValueError):
    """Tensors handed to the backend do not fit each other or what the namespace already holds."""


class ClosedError(BackendError):
    """The backend was used after ``close()``."""


class ReadOnlyError(BackendError):
    """Something would have written to a backend that was opened for reading only."""


class CorruptedError(BackendError):
    """What is stored cannot be read back as it was written; the message names namespace and chunk where it can."""


class SessionError(MemcoreError, RuntimeError):
    """A named session cannot do what was asked of it; it is as it was before."""


class UnknownSessionError(SessionError):
    """There is no session of that name."""


class SessionMismatchError(SessionError):
    """A session was made with another model, tokenizer or configuration than the one that asks for it."""


class WriteError(MemcoreError, OSError):
    """A file could not be written; what was there is as it was."""


class EvaluationError(MemcoreError, ValueError):
    """An evaluation cannot be done as asked, or not go on from the results that are there."""


class TrainingError(MemcoreError, ValueError):
    """A model cannot be trained as asked."""
