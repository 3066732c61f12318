from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from memcore.uninterrupted import uninterrupted

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before:
        signal.signal(number, handler)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_comes_after_the_outermost_block() -> None:
    done = []

    def work() -> None:
        with uninterrupted:
            with uninterrupted:
                interrupt()
                done.append("inner")
            done.append("outer")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_one_comes_at_once() -> None:
    done = []

    def work() -> None:
        with uninterrupted:
            interrupt()
            done.append("first")
            interrupt()
            done.append("second")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["first"]
    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_a_signal_is_not_lost_behind_one_that_raises() -> None:
    heard = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))

    def work() -> None:
        with uninterrupted:
            interrupt()
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert heard == [signal.SIGTERM]


def test_an_error_of_the_block_is_there_beside_the_interrupt() -> None:
    def work() -> None:
        with uninterrupted:
            interrupt()
            raise ValueError("what went wrong")

    with pytest.raises(KeyboardInterrupt) as raised:
        work()
    assert isinstance(raised.value.__context__, ValueError)


def test_handlers_that_raise_and_those_that_are_none_are_kept() -> None:
    done = []

    def leave(*_: object) -> None:
        raise SystemExit(3)

    def work() -> None:
        with uninterrupted:
            interrupt()
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("all")

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with pytest.raises(SystemExit):
        work()
    assert done == ["all"]
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is leave


def test_other_threads_may_use_it() -> None:
    done = []

    def work() -> None:
        with uninterrupted:
            done.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [signal.default_int_handler]
