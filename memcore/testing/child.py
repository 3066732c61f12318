"""A second process that opens a backend, and does and tells what the test process asks for, in lines of JSON.

It is given the file and the class of a :class:`memcore.testing.case.PersistentCase`, which says how to open the
backend.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from threading import Timer
from typing import IO, TYPE_CHECKING, Any, Final

import torch

from memcore import errors
from memcore.testing.chunks import make_chunks, random_queries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from memcore.backend import PersistentBackend
    from memcore.testing.case import PersistentCase

_START: Final = "from memcore.testing.child import main; main()"

_PATIENCE: Final = 60.0
"""Seconds after which a process that does not answer is killed."""


class ChildProcess:
    """The other process, seen from the test.

    Args:
        case: the test that needs it.

    Raises:
        TypeError: its class cannot be found by name in its file.
    """

    def __init__(self, case: PersistentCase) -> None:
        cls = type(case)
        if "<locals>" in cls.__qualname__:
            raise TypeError(f"{cls.__qualname__} must be found by name in {inspect.getfile(cls)}: define it outside")
        paths = [path for path in sys.path if path]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, inspect.getfile(cls), cls.__qualname__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        )

    def ask(self, command: str, **arguments: object) -> Any:
        """Have it do something and return its answer.

        Args:
            command: name of a method of :class:`Commands`.
            arguments: what that takes, as JSON can say it.

        Raises:
            MemcoreError: of the class and with the message that the other process got.
            AssertionError: anything else went wrong there.
        """
        self.tell(command, **arguments)
        return self.answer()

    def tell(self, command: str, **arguments: object) -> None:
        """Have it do something without waiting for the answer."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps([command, arguments]) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Wait for the next answer: see ``ask``."""
        assert self._process.stdout
        timer = Timer(_PATIENCE, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        assert line, f"the other process ended with {self._process.wait()}; its last words are on stderr"
        answer = json.loads(line)
        if "error" not in answer:
            return answer["result"]
        kind = getattr(errors, answer["error"], AssertionError)
        raise kind(f"in another process: {answer['error']}: {answer['message']}")

    def kill(self) -> None:
        """End it as a power cut would: it cannot clean up."""
        self._process.kill()
        self._process.communicate()


class Commands:
    """What can be asked of the other process: one method each, on the one backend it has open.

    Args:
        case: opens the backend.
        output: where answers go that come before a command is done.
    """

    def __init__(self, case: PersistentCase, output: IO[str]) -> None:
        self._case = case
        self._output = output
        self._opened: PersistentBackend | None = None

    @property
    def _backend(self) -> PersistentBackend:
        assert self._opened is not None, "open it first"
        return self._opened

    def open(self, path: str, read_only: bool = False) -> None:
        """Open what the test made in ``path``."""
        self._opened = self._case.reopen(Path(path), read_only)

    def store(self, namespace: str, count: int, seed: int) -> list[int]:
        """Store what :func:`make_chunks` makes; return the ids."""
        ids: list[int] = self._backend.store(namespace, make_chunks(count, seed=seed)).tolist()
        return ids

    def evict(self, namespace: str, ids: list[int]) -> None:
        """Evict chunks."""
        self._backend.evict(namespace, torch.tensor(ids, dtype=torch.int64))

    def write_record(self, name: str, text: str) -> None:
        """Write a record."""
        self._backend.write_record(name, text.encode())

    def flush(self) -> None:
        """Flush."""
        self._backend.flush()

    def close(self) -> None:
        """Close."""
        self._backend.close()

    def ids(self) -> dict[str, list[int]]:
        """Return the ids by namespace."""
        return {name: self._backend.ids(name).tolist() for name in self._backend.namespaces()}

    def records(self) -> dict[str, str]:
        """Return the records by name."""
        values = {name: self._backend.read_record(name) for name in self._backend.record_names()}
        return {name: value.decode() for name, value in values.items() if value is not None}

    def check(self, namespace: str, ids: list[int], count: int, seed: int) -> None:
        """Fail if chunks are not those that :func:`make_chunks` makes."""
        fetched = self._backend.fetch(namespace, torch.tensor(ids, dtype=torch.int64))
        self._case.assert_same(fetched, make_chunks(count, seed=seed))

    def retrieve(self, namespace: str, count: int, top_k: int) -> list[list[int]]:
        """Search with ``count`` random queries; return the ids found."""
        found: list[list[int]] = self._backend.retrieve(namespace, random_queries(count), top_k).ids.tolist()
        return found

    def verify(self) -> list[str]:
        """Return what is damaged."""
        return [str(damage) for damage in self._backend.verify()]

    def write_on(self) -> None:
        """Store a chunk in each of two namespaces, record how often, flush, answer, and again without end."""
        step = 0
        while True:
            step += 1
            for namespace in ("a", "b"):
                self.store(namespace, 1, seed=step)
            self.write_record("step", str(step))
            self.flush()
            _send(self._output, {"result": step})


@contextlib.contextmanager
def child_process(case: PersistentCase) -> Iterator[ChildProcess]:
    """Start another process, and kill it at the end."""
    child = ChildProcess(case)
    try:
        yield child
    finally:
        child.kill()


def _send(output: IO[str], answer: dict[str, object]) -> None:
    output.write(json.dumps(answer) + "\n")
    output.flush()


def _find_case(file: str, qualified_name: str) -> PersistentCase:
    spec = importlib.util.spec_from_file_location("memcore_backend_under_test", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    found: Any = module
    for name in qualified_name.split("."):
        found = getattr(found, name)
    case: PersistentCase = found()
    return case


def main() -> None:
    """Answer one line of JSON for each line that comes in."""
    # Only answers may go where the test process reads them.
    with contextlib.redirect_stdout(sys.stderr):
        output = sys.__stdout__
        assert output is not None
        commands = Commands(_find_case(sys.argv[1], sys.argv[2]), output)
        for line in sys.stdin:
            name, arguments = json.loads(line)
            try:
                answer = {"result": getattr(commands, name)(**arguments)}
            except Exception as error:
                answer = {"error": type(error).__name__, "message": str(error)}
            _send(output, answer)
