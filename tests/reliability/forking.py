"""Another process that forks a child for each job: importing takes longest, and so many can be killed in a minute."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any, Final

_PATIENCE: Final = 120.0
"""Seconds after which a job that says nothing counts as hanging."""

_LONGEST: Final = 4000
"""Bytes of a line that a pipe takes as a whole, even if the writer is killed."""


class Job:
    """A child at work.

    Attributes:
        pid: of it.
        said: what it has said so far.
        status: how it ended, as subprocess has it; None until then.
    """

    def __init__(self, forker: Forker) -> None:
        self._forker = forker
        self.said: list[Any] = []
        self.status: int | None = None
        kind, self.pid = forker.read()
        assert kind == "pid"

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal; it may have ended already."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def next(self) -> Any:
        """Wait for what it says next; None when it has ended."""
        if self.status is None:
            kind, value = self._forker.read()
            if kind == "said":
                self.said.append(value)
                return value
            self.status = value
        return None

    def end(self) -> list[Any]:
        """Wait until it has ended and return all that it said."""
        while self.status is None:
            self.next()
        return self.said


class Forker:
    """Use it as a context. One job at a time.

    Args:
        modules: what to import first.
        folder: where to look for modules, besides where this process does.
    """

    def __init__(self, *modules: str, folder: str = "") -> None:
        self._rest = b""
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from reliability.forking import serve; serve()", *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, [folder, *sys.path])),
                "OMP_NUM_THREADS": "1",
            },
        )

    def __enter__(self) -> Forker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def start(self, job: str, **arguments: object) -> Job:
        """Have a child call a function, ``"module:name"``, with what JSON can say."""
        assert self._process.stdin
        self._process.stdin.write((json.dumps([job, arguments]) + "\n").encode())
        self._process.stdin.flush()
        return Job(self)

    def do(self, job: str, **arguments: object) -> list[Any]:
        """Do a job to its end and return what it said; it must succeed."""
        job_ = self.start(job, **arguments)
        said = job_.end()
        assert job_.status == 0, f"{job} of {arguments} ended with {job_.status}, having said {said}"
        return said

    def read(self) -> tuple[str, Any]:
        """Return the next line: its kind and what it says."""
        assert self._process.stdout
        until = time.monotonic() + _PATIENCE
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"nothing was said for {_PATIENCE} seconds"
            more = os.read(self._process.stdout.fileno(), 1 << 16)
            assert more, f"the process ended with {self._process.wait()}; its last words are on stderr"
            self._rest += more
        line, self._rest = self._rest.split(b"\n", 1)
        kind, value = json.loads(line)
        return kind, value


def say(value: object) -> None:
    """Tell the test something: what it has read is not lost if this process is killed now."""
    _write("said", value)


def _write(kind: str, value: object) -> None:
    line = (json.dumps([kind, value]) + "\n").encode()
    assert len(line) < _LONGEST
    os.write(1, line)


def serve() -> None:
    """Fork a child for each line that comes in, and tell how it ended."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for module in sys.argv[1:]:
        importlib.import_module(module)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        child = os.fork()
        if not child:
            _write("pid", os.getpid())
            os._exit(_work(name, arguments))
        _, status = os.waitpid(child, 0)
        _write("ended", os.waitstatus_to_exitcode(status))


def _work(name: str, arguments: dict[str, Any]) -> int:
    try:
        module, _, function = name.partition(":")
        getattr(importlib.import_module(module), function)(**arguments)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


@contextlib.contextmanager
def forker(*modules: str, folder: str = "") -> Iterator[Forker]:
    """Start the process, and end it."""
    with Forker(*modules, folder=folder) as started:
        yield started
