"""The conformance kit: what a backend must do, as tests to inherit. Needs pytest and hypothesis (extra ``testing``).

Subclass :class:`BackendTests` in a test module, say how to open the backend, and run pytest::

    class TestMyBackend(memcore.testing.BackendTests):
        def open(self, path):
            return MyBackend(MyBackend.Options(path=path / "memory"))
"""

import pytest

# Before they are imported, so that their assertions explain themselves.
pytest.register_assert_rewrite("memcore.testing.backend", "memcore.testing.chunks", "memcore.testing.machine")

from memcore.testing.backend import BackendTests  # noqa: E402
from memcore.testing.chunks import DTYPES, assert_same_chunks, bits, make_chunks, select  # noqa: E402
from memcore.testing.machine import BackendMachine  # noqa: E402

__all__ = [
    "DTYPES",
    "BackendMachine",
    "BackendTests",
    "assert_same_chunks",
    "bits",
    "make_chunks",
    "select",
]
