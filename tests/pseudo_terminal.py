"""Programs on a terminal, as their users see them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence


def shown_on_a_terminal(command: Sequence[str], env: Mapping[str, str], *, typed: bytes = b"") -> tuple[int, bytes]:
    """Run a program on a terminal of 100 columns, and return its exit code and all that it shows there.

    Args:
        command: the program and its arguments.
        env: its environment.
        typed: what its user types.
    """
    import pty
    import termios

    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, 100))
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=dict(env))
    os.close(theirs)
    os.write(ours, typed)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(ours)
    return process.wait(), shown
