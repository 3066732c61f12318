"""Ending a training in good order when the user interrupts it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback


class Interruption(TrainerCallback):
    """Turns the first interrupt (Ctrl-C) into a checkpoint and the end of training, after the step under way.

    The second one is a KeyboardInterrupt, as usual.

    Attributes:
        came: whether there was one.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        """Wait for it from :meth:`awaited` on.

        Args:
            note: told what comes of it.
        """
        self.came = False
        self._note = note

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Catch interrupts while in this context. In a thread other than the main one there are none to catch."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._interrupted)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _interrupted(self, *_: Any) -> None:
        if self.came:
            raise KeyboardInterrupt
        self.came = True
        # In a thread, as what is told to may be in the middle of telling something here.
        said = "ending after this step, with a checkpoint; Ctrl-C again ends it now"
        threading.Thread(target=self._note, args=(said,)).start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End training, with a checkpoint, if it was interrupted."""
        if self.came:
            control.should_log = control.should_save = control.should_training_stop = True
