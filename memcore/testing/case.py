"""What a test class of the kit says about the backend it tests: how to open it, and how to look behind its back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from memcore.in_memory import InMemoryBackend
from memcore.testing.chunks import assert_same_chunks
from memcore.testing.in_memory import payload_in_table

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from memcore.backend import MemoryBackend, PersistentBackend
    from memcore.chunk import ChunkBatch


class BackendCase:
    """A backend under test.

    Attributes:
        exact: whether few chunks are always searched exactly.
    """

    exact: ClassVar[bool] = True

    def open(self, path: Path) -> MemoryBackend:
        """Return a backend with nothing in it, which may keep files in this empty folder."""
        raise NotImplementedError(f"{type(self).__name__} must say in open(path) how to open the backend")

    def raw_payload(self, backend: MemoryBackend, namespace: str, id: int) -> tuple[Tensor, Tensor]:
        """Read one chunk from where the backend keeps it, by other means than the backend's own methods.

        A backend is not to be tested with itself: what ``store`` mixed up, ``fetch`` may mix up the other way round.
        Subclasses of :class:`memcore.in_memory.InMemoryBackend` need not override this.

        Args:
            backend: open, and flushed if it is persistent.
            namespace: where the chunk is stored.
            id: the chunk's id.

        Returns:
            Its keys ``[H, L, D]`` and values ``[H, L, Dv]``, ``L`` being its length, in their dtype, on any device.
        """
        if isinstance(backend, InMemoryBackend):
            return payload_in_table(backend, namespace, id)
        raise NotImplementedError(f"{type(self).__name__} must say in raw_payload() where chunks are kept")

    def assert_same(self, got: ChunkBatch, want: ChunkBatch) -> None:
        """Check that chunks fetched are those stored: bit for bit, unless a backend that compresses says otherwise."""
        assert_same_chunks(got, want)

    @property
    def keeps_every_bit(self) -> bool:
        """Whether payloads come back as they were, so that ``assert_same`` is not overridden."""
        return type(self).assert_same is BackendCase.assert_same

    @pytest.fixture
    def backend(self, tmp_path: Path) -> Any:
        """A fresh backend, closed after the test."""
        with self.open(tmp_path) as backend:
            yield backend


class PersistentCase(BackendCase):
    """A persistent backend under test.

    Attributes:
        one_writer: whether opening it for writing fails while another process writes there.
        follows_writer: whether an instance opened ``read_only`` shows what another process flushes later on.
    """

    one_writer: ClassVar[bool] = True
    follows_writer: ClassVar[bool] = True

    def open(self, path: Path) -> PersistentBackend:
        """Return a backend with nothing in it, which keeps its files in this empty folder."""
        raise NotImplementedError(f"{type(self).__name__} must say in open(path) how to open the backend")

    def reopen(self, path: Path, read_only: bool = False) -> PersistentBackend:
        """Open again what ``open(path)`` made, perhaps in another process."""
        raise NotImplementedError(f"{type(self).__name__} must say in reopen(path) how to open what is there")

    def damage(self, path: Path, namespace: str, id: int) -> None:
        """Flip one bit of a chunk's stored keys in the files of a backend that is closed."""
        raise NotImplementedError(f"{type(self).__name__} must say in damage(path) how to flip a bit of a chunk")
