"""The conformance kit: what a backend must do, as tests to inherit. Needs pytest and hypothesis (extra ``testing``).

Subclass :class:`BackendTests` or :class:`PersistentBackendTests` in a test module, say how to open the backend and how
to look behind its back, and run pytest::

    class TestMyBackend(memcore.testing.BackendTests):
        def open(self, path):
            return MyBackend(MyBackend.Options(path=path / "memory"))

        def raw_payload(self, backend, namespace, id):
            ...  # keys and values of that chunk, read by other means than the backend's own methods
"""

import pytest

# Before they are imported, so that their assertions explain themselves.
pytest.register_assert_rewrite(
    *(
        f"memcore.testing.{name}"
        for name in (
            "backend",
            "bad_input",
            "chunks",
            "contents",
            "machine",
            "namespaces",
            "persistence",
            "persistent",
            "persistent_machine",
            "processes",
            "searching",
            "storing",
            "threads",
        )
    )
)

from memcore.testing.backend import BackendTests  # noqa: E402
from memcore.testing.chunks import DTYPES, assert_same_chunks, bits, make_chunks, random_queries, select  # noqa: E402
from memcore.testing.machine import BackendMachine  # noqa: E402
from memcore.testing.persistent import PersistentBackendTests  # noqa: E402

__all__ = [
    "DTYPES",
    "BackendMachine",
    "BackendTests",
    "PersistentBackendTests",
    "assert_same_chunks",
    "bits",
    "make_chunks",
    "random_queries",
    "select",
]
